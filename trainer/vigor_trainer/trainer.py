"""TRL's GRPOTrainer, with two additions that stock TRL does not offer to its reward functions.

- During generation, the weights that generate are published, sharded ones and adapters too. A callback would see only
  optimizer steps, but generation also happens in the middle of an accumulation, in evaluation, and at the start of a
  resumed run.
- After generation, the prompt's token ids that generation used, and the mask of tokens that tools wrote, are passed to
  the reward function through TRL's channel for extra fields of a rollout. Tokenizing the prompt a second time could
  give other ids (a template with a date, truncation, tools), and then another gradient would be measured.

The rules shared with TRL's own trainers (how a completion ended, when weights are due, one call for all processes) are
in `vigor_client.integrations.trl`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_client import PublishResult
from vigor_client.integrations.trl.completions import end_token_ids, finish_reason
from vigor_client.publishing.adapted_model import PublishedWeights
from vigor_trainer.monitoring.step_times import StepTimer
from vigor_trainer.weights.adapters import whole_adapted_model
from vigor_trainer.weights.gathering import gathered_weights
from vigor_trainer.weights.publisher import Publisher

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage] - exported lazily

    from vigor_trainer.weights.accelerator import Accelerator


class VigorTrainer(GRPOTrainer):
    """GRPO whose completions are scored by the weights that generated them.

    Raises:
        UnsupportedSettingError, UnsupportedAdapterError: the model has an adapter that cannot be published.
    """

    accelerator: Accelerator

    def __init__(self, *, publisher: Publisher, step_timer: StepTimer | None = None, **grpo: Any) -> None:  # noqa: ANN401 - TRL's own arguments
        super().__init__(**grpo)  # pyright: ignore[reportUnknownMemberType] - partly untyped in TRL
        self._adapted = whole_adapted_model(self.accelerator, self._bare_model)
        self._publisher = publisher
        self.step_timer = step_timer or StepTimer()
        self.add_callback(_StepBoundaries(self.step_timer))  # pyright: ignore[reportUnknownMemberType] - partly untyped in TRL

    @property
    def has_begun(self) -> bool:
        """Whether anything was generated yet; until then the run is still being built."""
        return self._publisher.step is not None

    def publish_final_weights(self) -> PublishResult:
        """Publish the final weights, so that the service has those of the checkpoint that is saved next."""
        self._publisher.forget()
        self._publisher.begin(self._weights, self.state.global_step)
        return self._publisher.finish()

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        """Log the metrics of an evaluation under the current step, separately from TRL's next log line."""
        control = cast("TrainerControl", self.control)  # pyright: ignore[reportUnknownMemberType] - partly untyped in TRL
        is_line_due = control.should_log  # whether TRL's own log line is due, which any other logging would cancel
        Trainer.log(self, metrics)
        control.should_log = is_line_due

    def training_step(self, *batch: Any, **more: Any) -> torch.Tensor:  # noqa: ANN401 - transformers' own arguments
        """Return the loss; its time, except that of `_prepare_inputs`, counts as optimization."""
        with self.step_timer.measure("optimize"):
            return super().training_step(*batch, **more)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def evaluate(self, *given: Any, **more: Any) -> dict[str, float]:  # noqa: ANN401 - transformers' own arguments
        """Return the metrics of TRL's evaluation, which is timed as a separate part of a step."""
        with self.step_timer.measure("evaluate"):
            return super().evaluate(*given, **more)  # pyright: ignore[reportUnknownMemberType]

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        part = "prepare" if self._bare_model.training else "evaluate"
        with self.step_timer.measure(part):
            return super()._prepare_inputs(generation_batch)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        self._publisher.begin(self._weights, self.state.global_step)
        # TRL merges the adapter in place while it passes the weights to vLLM, so they must have been read before.
        if self._adapted and cast("GRPOConfig", self.args).use_vllm:
            self._publisher.finish()
        started = perf_counter()
        rollout = cast("tuple[Any, ...]", super()._generate(prompts))  # pyright: ignore[reportUnknownMemberType]
        generate_seconds = perf_counter() - started
        prompt_ids, completion_ids, loss_mask, extra_fields = rollout[0], rollout[1], rollout[2], rollout[5]
        training, ends = self._bare_model.training, end_token_ids(self, self.processing_class)
        extra_fields |= {
            "prompt_ids": prompt_ids,
            "loss_mask": loss_mask or [None] * len(prompt_ids),
            "finish_reason": [finish_reason(ids, ends) for ids in completion_ids],
            "group_size": self.num_generations if training else self.num_generations_eval,
            "mode": "train" if training else "eval",
            "generate_seconds": generate_seconds,
        }
        return rollout

    def _weights(self) -> PublishedWeights:
        """Return the weights to publish. All processes must call it, since sharded weights are gathered from all."""
        wrapped = cast("torch.nn.Module", self.model_wrapped)  # pyright: ignore[reportUnknownMemberType]
        return self._adapted or gathered_weights(self.accelerator, wrapped)

    @property
    def _bare_model(self) -> torch.nn.Module:
        return cast("torch.nn.Module", self.model)  # pyright: ignore[reportUnknownMemberType] - partly untyped


class _StepBoundaries(TrainerCallback):
    """Tells the timer where a step begins and where its update ends."""

    def __init__(self, timer: StepTimer) -> None:
        self._timer = timer

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - as transformers calls it
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        self._timer.begin(state.global_step)

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        if torch.accelerator.is_available():  # the device may still be computing the gradient
            torch.accelerator.synchronize()
        self._timer.extend("optimize")

    def on_train_end(self, *_: object, **__: object) -> None:
        self._timer.end()
