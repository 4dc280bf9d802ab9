"""TRL's own trainer, with rewards and publications of the client's adapter, against the real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from tests.client.integrations.gathering_service import GatheringService, gathering_service
from tests.service_process import service_process
from tests.tiny_models import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from vigor_client import VigorClient
from vigor_client.integrations.trl import AsyncVigorReward, VigorReward
from vigor_client.integrations.trl_weights import WeightPublisher
from vigor_trainer.tasks import TaskSource, load_task

CLOSED_PORT_URL = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("service")
    model = save_tiny_checkpoint(directory / "model")
    with service_process(directory, "--model", str(model), "--device", "cpu") as service:
        yield str(service.http.base_url)


@pytest.fixture
def gathering() -> Iterator[GatheringService]:
    with gathering_service() as service:
        yield service


def trainer(directory: Path, reward: object, weights: WeightPublisher, **settings: Any) -> GRPOTrainer:  # noqa: ANN401
    """TRL's own trainer on a tiny model: groups of 4, completions of at most 8 tokens."""
    given: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **settings,
    }
    task = load_task(TaskSource("addition"), has_chat_template=True)
    return GRPOTrainer(
        model=tiny_model(),
        args=GRPOConfig(**given),
        reward_funcs=reward,  # pyright: ignore[reportArgumentType] - any callable
        processing_class=tiny_tokenizer(),
        train_dataset=task,
        eval_dataset=task.select(range(4)) if "eval_strategy" in settings else None,
        callbacks=[weights],  # pyright: ignore[reportArgumentType] - transformers calls methods by name
    )


@pytest.mark.parametrize("kind", [VigorReward, AsyncVigorReward])
def test_stock_grpo_trains_on_rewards_of_its_current_weights(
    kind: type[VigorReward | AsyncVigorReward], service_url: str, tmp_path: Path
) -> None:
    weights = WeightPublisher(service_url)
    reward = kind(service_url, tiny_tokenizer(), 4, weights=weights, on_failure="raise")
    grpo = trainer(tmp_path, reward, weights)
    grpo.train()
    rounds = [entry for entry in grpo.state.log_history if "rewards/vigor/mean" in entry]
    assert [entry["vigor/weight_version"] for entry in rounds] == [0, 1, 2]
    assert [entry["rewards/vigor/mean"] for entry in rounds] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(entry["reward_std"] > 0.5 and entry["vigor/mean_scaled_grad_norm"] > 0 for entry in rounds)
    with VigorClient(service_url) as client:
        assert client.weights().weight_version == 3, "training ends with its last weights published"
        client.publish_weights(tiny_model().state_dict(), weight_version=0)
