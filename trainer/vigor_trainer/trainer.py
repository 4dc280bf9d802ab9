"""TRL's GRPOTrainer, with the two things that its reward functions are not given.

- Around generation: the weights that are about to generate are published, once per optimizer step. A callback cannot do
  this: generation also happens in the middle of an accumulation, in evaluation, and at the start of a resumed run.
- After generation: the prompt's token ids as they were generated from, handed to the reward function through the
  channel that TRL has for extra fields of a rollout. Tokenizing the prompt a second time could differ (a template
  with a date, truncation, tools), and then another gradient would be measured.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_client import PublishResult
from vigor_trainer.processes import on_main_process
from vigor_trainer.weights.gathering import gathered_weights
from vigor_trainer.weights.lora import adapted_model
from vigor_trainer.weights.publisher import Publisher

if TYPE_CHECKING:
    import torch
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage] - exported lazily


class VigorTrainer(GRPOTrainer):
    """GRPO whose completions are scored by the weights that generated them.

    Raises:
        UnsupportedSettingError: the model has an adapter that cannot be published.
    """

    def __init__(self, *, publisher: Publisher, **grpo: Any) -> None:  # noqa: ANN401 - TRL's own arguments
        super().__init__(**grpo)
        self._adapted = adapted_model(self.accelerator, cast("torch.nn.Module", self.model))
        self._publisher = publisher
        self._published_step: int | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything was generated: until then the run is still being built."""
        return self._published_step is not None

    def publish_final_weights(self) -> PublishResult:
        """Publish what training ended with, so that the service serves the checkpoint that is saved next."""
        self._begin_publication()
        return on_main_process(self._publisher.wait)

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._published_step != self.state.global_step:
            self._begin_publication()
            # TRL merges the adapter in place while it hands the weights to vLLM: they must have been read by then.
            if self._adapted and cast("GRPOConfig", self.args).use_vllm:
                on_main_process(self._publisher.wait)
        started = perf_counter()
        rollout = super()._generate(prompts)
        generate_seconds = perf_counter() - started
        prompt_ids, completion_ids, loss_mask, extra_fields = rollout[0], rollout[1], rollout[2], rollout[5]
        training = self.model.training  # pyright: ignore[reportOptionalMemberAccess] - there is one by now
        extra_fields |= {
            "prompt_ids": prompt_ids,
            "loss_mask": loss_mask or [None] * len(prompt_ids),
            "finish_reason": [self._finish_reason(ids) for ids in completion_ids],
            "group_size": self.num_generations if training else self.num_generations_eval,
            "mode": "train" if training else "eval",
            "generate_seconds": generate_seconds,
        }
        return rollout

    def _finish_reason(self, completion_ids: list[int]) -> str:
        """`stop` by the rule that TRL masks truncated completions with."""
        ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        return "stop" if completion_ids[-1] in ends else "length"

    def _begin_publication(self) -> None:
        # Sharded weights are gathered from all processes, so all of them come here.
        weights = self._adapted or gathered_weights(self.accelerator, cast("torch.nn.Module", self.model_wrapped))
        if self.accelerator.is_main_process:
            self._publisher.begin(weights, self.state.global_step)
        self._published_step = self.state.global_step
