"""`--eval_every`: the evaluation of `vigor-trainer eval` on held-out questions, while a model is trained.

It does not use the service or compute rewards. Model and random state are restored, so that the run continues as
without the evaluation. Questions are divided among the processes of a run; the main process writes the files.
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
    """The methods of a `VigorTrainer` that are used here."""

    @property
    def accelerator(self) -> Accelerator: ...

    def log_evaluation(self, metrics: dict[str, float], /) -> None: ...


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The questions to evaluate, and how many completions of each are sampled in addition to the greedy one."""

    questions: Sequence[Question]
    num_samples: int
    temperature: float


class Evaluations:
    """Evaluates a model during training, logs the metrics, and appends to two files in the run's directory.

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
        """Evaluate the model in its present state. All processes must call it."""
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
        """Return the completions of this process' questions: every n-th one, with n processes."""
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
        """Evaluate a new run; a resumed one was already evaluated at this step."""
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> None:
        """Evaluate if an evaluation is due."""
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if is_last or state.global_step % self._every == 0:
            self._evaluate(state.global_step)
