"""`--eval_every`: the evaluation of `vigor-trainer eval` on held-out questions, while a model is trained.

No service is asked and no reward computed; model and random state are left as they were, so that the run goes on as
without it. Questions are shared out to the processes of a run; the main process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from transformers import TrainerCallback

from vigor_client.integrations.trl.distributed import gather_from_all, on_main_process, torch_processes
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.evaluation.completions import Question, sample_completions
from vigor_trainer.evaluation.metrics import EvaluationMetrics, evaluation_metrics, logged_metrics
from vigor_trainer.evaluation.sampling import Sampler
from vigor_trainer.monitoring.evaluations import (
    EVALUATION_COMPLETIONS_FILE,
    EvaluatedCompletion,
    EvaluationRecord,
    evaluation_file,
)
from vigor_trainer.monitoring.record_file import RecordFile, Resumption
from vigor_trainer.weights.accelerator import DEEPSPEED, FSDP, Accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments


class LoggingTrainer(Protocol):
    """What is needed of a `VigorTrainer`."""

    @property
    def accelerator(self) -> Accelerator: ...

    def log_evaluation(self, metrics: dict[str, float], /) -> None: ...


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is evaluated: questions, and how many completions of each are sampled beside the greedy one."""

    questions: Sequence[Question]
    num_samples: int
    temperature: float


class Evaluations:
    """Evaluates a model that is trained, logs the numbers, and appends to two files in the run's directory.

    Raises:
        UnsupportedSettingError: the model is sharded over the processes.
        ValueError: a resumed run's files hold something else than records; names the line.
    """

    def __init__(
        self,
        trainer: LoggingTrainer,
        held_out: HeldOut,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerBase,
        directory: Path,
        resumption: Resumption | None,
    ) -> None:
        if trainer.accelerator.distributed_type.value in (FSDP, DEEPSPEED):
            raise UnsupportedSettingError(
                f"--eval_every with {trainer.accelerator.distributed_type.value}: generation needs the whole model in "
                "each process; evaluate the saved checkpoints with vigor-trainer eval"
            )
        self._trainer = trainer
        self._held_out = held_out
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._processes = torch_processes()
        self._evaluations = evaluation_file(directory, resumption)
        self._completions = RecordFile(directory / EVALUATION_COMPLETIONS_FILE, EvaluatedCompletion, resumption)

    def evaluate(self, step: int) -> EvaluationMetrics:
        """Evaluate the model as it is. All processes must call it."""
        started = perf_counter()
        completions = gather_from_all(self._own_completions(step))
        completions.sort(key=lambda each: (each.question, each.decoding, each.index))
        metrics = evaluation_metrics(completions)

        def record() -> None:
            self._completions.append(*completions)
            seconds = perf_counter() - started
            self._evaluations.append(EvaluationRecord(step=step, seconds=seconds, metrics=asdict(metrics)))

        on_main_process(record)
        self._trainer.log_evaluation(logged_metrics(metrics))
        return metrics

    def _own_completions(self, step: int) -> list[EvaluatedCompletion]:
        """Return the completions of every n-th question, where n processes share them."""
        return sample_completions(
            self._held_out.questions[self._processes.rank :: self._processes.count],
            self._sampler,
            self._tokenizer,
            num_samples=self._held_out.num_samples,
            temperature=self._held_out.temperature,
            step=step,
        )


class EvaluationCallback(TrainerCallback):
    """Calls ``evaluate(step)`` before the first step, every ``every`` steps, and after the last one."""

    def __init__(self, evaluate: Callable[[int], object], *, every: int) -> None:
        self._evaluate = evaluate
        self._every = every

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - as transformers calls it
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        """Evaluate a run that is new; a resumed one has had its evaluation at this step."""
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> None:
        """Evaluate if it is due."""
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if is_last or state.global_step % self._every == 0:
            self._evaluate(state.global_step)
