"""TRL's trainer on a tiny model: what is scored by which weights, and when they are sent."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.trainer.fake_service import FakeService, digest_of, tiny_trainer
from vigor_client.publishing.tensor_names import with_plain_names
from vigor_client.schemas.scoring import ScoreRequest
from vigor_trainer.monitoring.records import read_records
from vigor_trainer.monitoring.step_times import read_steps
from vigor_trainer.reports.step_seconds import parts_of_step
from vigor_trainer.trainer import VigorTrainer
from vigor_trainer.weights.publisher import Publisher

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def weights(trainer: VigorTrainer) -> dict[str, torch.Tensor]:
    assert trainer.model is not None
    return trainer.model.state_dict()


def train(service: FakeService, directory: Path, **settings: object) -> VigorTrainer:
    with Publisher(service) as publisher:
        trainer = tiny_trainer(service, publisher, directory, **settings)

        def check(request: ScoreRequest) -> None:
            assert request.weight_digest == digest_of(weights(trainer)), "scored by other weights"

        service.on_score = check
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
        final = trainer.publish_final_weights()
    assert final.weight_digest == service.weight_digest == digest_of(weights(trainer))
    return trainer


def test_every_round_is_scored_by_the_weights_that_generated_it(tmp_path: Path) -> None:
    service = FakeService(tiny_model().state_dict())
    train(service, tmp_path)
    assert service.asked_versions == [0, 1, 2, 3], "once per round, and once when training ended"
    assert service.sent_versions == [1, 2, 3], "nothing is sent at the start: the service has these weights"
    assert [request.weight_version for request in service.requests] == [0, 1, 2]
    assert len({request.weight_digest for request in service.requests}) == 3


def test_weights_the_service_lacks_are_sent_at_the_start(tmp_path: Path) -> None:
    service = FakeService()
    train(service, tmp_path, max_steps=1)
    assert service.sent_versions == [0, 1]


@pytest.mark.parametrize(
    ("settings", "round_versions", "published_versions"),
    [
        # a round per micro-batch, two of them under the same weights
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 2}, [0, 0, 1, 1], [0, 1, 2]),
        # a round that begins in the middle of an accumulation, where no callback is called
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3, "max_steps": 4}, [0, 1, 3], [0, 1, 3, 4]),
        # two optimizer steps on one round
        ({"num_iterations": 2, "max_steps": 4}, [0, 2], [0, 2, 4]),
    ],
)
def test_weights_are_published_once_per_generation_round(
    tmp_path: Path, settings: dict[str, Any], round_versions: list[int], published_versions: list[int]
) -> None:
    service = FakeService()
    train(service, tmp_path, **settings)
    assert [request.weight_version for request in service.requests] == round_versions
    assert service.asked_versions == published_versions


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_a_compiled_model_keeps_its_names() -> None:
    model = tiny_model()
    compiled = torch.compile(model)
    assert isinstance(compiled, torch.nn.Module)
    assert with_plain_names(compiled.state_dict()).keys() == model.state_dict().keys()


def test_evaluation_is_scored_by_the_current_weights_too(tmp_path: Path) -> None:
    service = FakeService()
    train(service, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, num_generations_eval=2)
    rounds = [(record.mode, record.weight_version) for record in read_records(tmp_path)]
    assert rounds == [("train", 0), ("eval", 1), ("train", 1), ("eval", 2)]
    assert service.asked_versions == [0, 1, 2, 2]
    assert {len(group.completions) for request in service.requests for group in request.groups} == {2, 4}


def test_the_parts_of_each_step_are_recorded_and_are_no_longer_than_it(tmp_path: Path) -> None:
    service = FakeService(tiny_model().state_dict())
    started = perf_counter()
    train(service, tmp_path, eval_strategy="steps", eval_steps=2, per_device_train_batch_size=4, logging_steps=1)
    seconds = perf_counter() - started
    steps = read_steps(tmp_path)
    assert [step.step for step in steps] == [0, 1, 2]
    assert sum(step.seconds for step in steps) < seconds
    assert [step.evaluate_seconds > 0 for step in steps] == [False, True, True], "every second step, and the last"
    rounds = [record for record in read_records(tmp_path) if record.mode == "train"]
    for step in steps:
        parts = parts_of_step(step, [record for record in rounds if record.step == step.step])
        assert sum(parts.values()) == pytest.approx(step.seconds)
        assert min(parts.values()) >= -1e-9, parts
        assert parts["sampling"] > 0
        assert parts["loss, gradient and update"] > 0


def test_a_resumed_run_publishes_the_weights_it_resumes_with(tmp_path: Path) -> None:
    train(FakeService(), tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    service = FakeService()
    train(service, tmp_path, max_steps=3, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [request.weight_version for request in service.requests] == [2]
    assert service.sent_versions == [2, 3]


def test_the_service_gets_the_ids_that_were_generated_in_complete_groups(tmp_path: Path) -> None:
    service = FakeService()
    train(service, tmp_path, max_steps=1)
    tokenizer = tiny_tokenizer()
    [request] = service.requests
    assert [len(group.completions) for group in request.groups] == [4, 4]
    for group in request.groups:
        assert group.prompt_ids is not None
        prompt = str(tokenizer.decode(group.prompt_ids))
        assert prompt.startswith("<|im_start|>user\nWhat is ")
        assert prompt.endswith("<|im_start|>assistant\n")
        for completion in group.completions:
            assert completion.ids is not None
            assert completion.finish_reason == ("stop" if completion.ids[-1] == 257 else "length")
            assert 1 <= len(completion.ids) <= 8


def test_rewards_move_the_model_and_are_logged(tmp_path: Path) -> None:
    service = FakeService()
    trainer = train(service, tmp_path, max_steps=2)
    before = tiny_model().state_dict()
    assert any(not torch.equal(before[name], after) for name, after in weights(trainer).items())
    [first, second] = trainer.state.log_history[:2]
    assert [first["vigor/weight_version"], second["vigor/weight_version"]] == [0, 1]
    assert first["rewards/vigor/mean"] == pytest.approx(0, abs=1e-6)
    norms = [sum(completion.ids or []) for group in service.requests[0].groups for completion in group.completions]
    assert first["vigor/mean_scaled_grad_norm"] == pytest.approx(sum(norms) / len(norms))


def test_a_service_that_fails_stops_training_without_a_step(tmp_path: Path) -> None:
    def refuse(_: ScoreRequest) -> None:
        raise ConnectionError("gone")

    service = FakeService()
    service.on_score = refuse
    with Publisher(service) as publisher:
        trainer = tiny_trainer(service, publisher, tmp_path)
        with pytest.raises(ConnectionError, match="gone"):
            trainer.train()
    assert trainer.state.global_step == 0
    assert read_records(tmp_path) == []
