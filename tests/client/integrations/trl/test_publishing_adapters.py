"""TRL's own GRPOTrainer with a LoRA adapter: the service has each step's weights, and scores as the model would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from tests.client.integrations.grpo import TEXTS, stock_trainer
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from vigor_client import UnsupportedAdapterError, VigorClient, digest_of_tensors
from vigor_client.integrations.trl.publisher import WeightPublisher
from vigor_client.integrations.trl.reward import VigorReward

RELATIVE = 1e-5


def lora_config() -> Any:  # noqa: ANN401 - PEFT's
    from peft import LoraConfig

    return LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")


@contextmanager
def service_of(directory: Path, form: str) -> Iterator[str]:
    """A service of the tiny model, or of an adapter of it."""
    from peft import get_peft_model

    model = save_tiny_checkpoint(directory / "model")
    if form == "adapter":
        adapted = get_peft_model(tiny_model(), lora_config())
        adapted.peft_config["default"].base_model_name_or_path = str(model)
        adapted.save_pretrained(str(directory / "adapter"))
        model = directory / "adapter"
    with service_process(directory, "--model", str(model), "--device", "cpu") as service:
        yield str(service.http.base_url)


def service_side(trainer: GRPOTrainer, form: str) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """The trainer's model as the service holds it, and what is measured of it."""
    from peft import get_peft_model

    model: Any = get_peft_model(tiny_model(), lora_config())
    model.load_state_dict(cast("torch.nn.Module", trainer.model).state_dict())
    if form == "base":
        model = model.merge_and_unload().requires_grad_(True)
    return model.eval(), [parameter for parameter in model.parameters() if parameter.requires_grad]


def plain_norm(
    model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter], prompt: list[int], completion: list[int]
) -> tuple[float, float]:
    """The norm of the gradient of the mean NLL, and the mean log-probability, by one backward pass."""
    with torch.enable_grad():
        logits_TV = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprob = logits_TV.double().log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].mean()
        gradients = torch.autograd.grad(-logprob, list(parameters))
    return sum(float(each.double().square().sum()) for each in gradients) ** 0.5, logprob.item()


@pytest.mark.parametrize("form", ["adapter", "base"])
def test_each_step_of_a_stock_trainer_is_scored_as_its_model_would_score_it(tmp_path: Path, form: str) -> None:
    tokenizer, digests = tiny_tokenizer(), list[str]()
    with service_of(tmp_path, form) as url, VigorClient(url) as client:
        weights = WeightPublisher(url)

        def look(prompts: list[str], completion_ids: list[list[int]], trainer_state: Any, **_: object) -> list[float]:  # noqa: ANN401
            """Compare what the service has and says with the trainer's model; rewards nothing."""
            model, parameters = service_side(trainer, form)
            published = weights.at(trainer_state.global_step)
            assert published.weight_digest == digest_of_tensors(model.state_dict(), client.tensors())
            digests.append(published.weight_digest)
            prompt = cast("list[int]", tokenizer(prompts[0])["input_ids"])
            group = {"prompt_ids": prompt, "completions": [{"ids": ids} for ids in completion_ids[:4]]}
            scored = client.score([group], weight_version=trainer_state.global_step, weight_digest=digests[-1])
            for ids, score in zip(completion_ids, scored.groups[0].completions, strict=False):
                expected = plain_norm(model, parameters, prompt, ids)
                assert (score.grad_norm, score.mean_logprob) == pytest.approx(expected, rel=RELATIVE)
            return [0.0] * len(completion_ids)

        reward = VigorReward(url, tokenizer, 4, weights=weights, on_failure="raise")
        trainer = stock_trainer(
            tmp_path / "run", reward, look, weights=weights, prompts=TEXTS, peft_config=lora_config()
        )
        trainer.train()
        model, _ = service_side(trainer, form)
        served = client.weights()
        assert (served.weight_version, len(set(digests))) == (3, 3)
        assert served.weight_digest == digest_of_tensors(model.state_dict(), client.tensors())


def test_an_adapter_that_cannot_be_published_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    from peft import IA3Config

    weights = WeightPublisher("http://nowhere.invalid")
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    trainer = stock_trainer(tmp_path, lambda **_: [0.0] * 8, weights=weights, peft_config=config)
    with pytest.raises(UnsupportedAdapterError, match="adapters of type IA3; train one adapter of type LORA"):
        trainer.train()
