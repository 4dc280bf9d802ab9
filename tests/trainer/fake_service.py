"""A service in this process: keeps what is published to it, and scores by a rule that tests can work out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from tests.client.fake_service import MODEL
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from vigor_client import PublishResult, WeightSnapshot, WeightTransport
from vigor_client.ranking import rank_rewards, ranks
from vigor_client.schemas.scoring import CompletionScore, Group, GroupScore, ScoreRequest, ScoreResponse, Timing, Usage
from vigor_client.schemas.service import ModelInfo
from vigor_client.schemas.weights import TensorList
from vigor_client.weight_format.digest import checksum
from vigor_trainer.data.tasks import TaskSource, load_task
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.step_times import StepTimer
from vigor_trainer.rewards.groups import ScoreOptions
from vigor_trainer.rewards.round_rewards import RoundRewards
from vigor_trainer.trainer import VigorTrainer
from vigor_trainer.weights.publisher import Publisher


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of names and bytes."""
    lines = [f"{name} {checksum(tensors[name].detach().numpy().tobytes())}" for name in sorted(tensors)]
    return checksum("\n".join(lines).encode())


class FakeService:
    """What the trainer needs of `VigorClient`. A completion's norm is the sum of its ids."""

    def __init__(self, initial: Mapping[str, torch.Tensor] | None = None) -> None:
        self.weight_version = 0
        self.weight_digest = digest_of(initial or {})
        self.sent_versions: list[int] = []
        self.asked_versions: list[int] = []
        self.requests: list[ScoreRequest] = []
        self.snapshots: list[WeightSnapshot | None] = []
        self.ways: list[WeightTransport | None] = []
        self.on_score: Callable[[ScoreRequest], None] = lambda _: None
        self.on_publish: Callable[[int], None] = lambda _: None
        self.compute_seconds = 0.0

    def model(self) -> ModelInfo:
        return MODEL

    def tensors(self) -> TensorList:
        return TensorList(weight_version=self.weight_version, weight_digest=self.weight_digest, tensors=[])

    def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        partial: bool = False,
        transport: WeightTransport | None = None,
    ) -> PublishResult:
        assert not partial, "a whole model is published whole"
        self.on_publish(weight_version)
        self.snapshots.append(snapshot)
        self.ways.append(transport)
        self.asked_versions.append(weight_version)
        digest = digest_of(tensors)
        if digest == self.weight_digest:
            return PublishResult(self.weight_version, digest, sent_bytes=0, num_changed_tensors=0)
        self.weight_version, self.weight_digest = weight_version, digest
        self.sent_versions.append(weight_version)
        return PublishResult(
            weight_version,
            digest,
            sent_bytes=1000,
            num_changed_tensors=len(tensors),
            plan_seconds=0.5,
            send_seconds=0.25,
        )

    def score(self, groups: Sequence[Group], **insisted: Any) -> ScoreResponse:  # noqa: ANN401 - as VigorClient.score
        request = ScoreRequest(groups=list(groups), **insisted)
        self.requests.append(request)
        self.on_score(request)
        return ScoreResponse(
            model="fake",
            weight_version=self.weight_version,
            weight_digest=self.weight_digest,
            reward=request.reward,
            groups=[score_group(group) for group in request.groups],
            usage=Usage(prompt_tokens=0, completion_tokens=0, deduplicated_completions=0),
            timing=Timing(queue_seconds=0.0, compute_seconds=self.compute_seconds),
        )


def score_group(group: Group) -> GroupScore:
    """The smallest sum of ids is best."""
    norms = [float(sum(completion.ids or [])) for completion in group.completions]
    order = ranks(norms)
    return GroupScore(
        id=group.id,
        completions=[
            CompletionScore(
                status="ok",
                num_tokens=len(completion.ids or []),
                grad_norm=1.0,
                scaled_grad_norm=norm,
                rank=rank,
                reward=reward,
                mean_logprob=-1.0,
                mean_entropy=2.0,
                self_certainty=3.0,
                p_norm=norm / 100,
                sum_logprob=-norm,
            )
            for completion, norm, rank, reward in zip(group.completions, norms, order, rank_rewards(order), strict=True)
        ],
    )


def tiny_trainer(
    service: FakeService, publisher: Publisher, directory: Path, *, peft_config: object = None, **settings: object
) -> VigorTrainer:
    """A real trainer on a tiny model: one-digit addition, groups of 4, completions of at most 8 tokens."""
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
    }
    given.update(settings)
    task = load_task(TaskSource("addition"), has_chat_template=True)
    files = RunFiles(directory)
    return VigorTrainer(
        publisher=publisher,
        step_timer=StepTimer(files.append_step),
        model=tiny_model(),
        args=GRPOConfig(**given),
        reward_funcs=RoundRewards(service, publisher, ScoreOptions(), ["vigor"], record=files.append).functions,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        train_dataset=task,
        eval_dataset=task.select(range(4)) if "eval_strategy" in settings else None,
    )
