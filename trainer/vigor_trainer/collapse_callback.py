"""Connects TRL's training loop with the collapse watch: keeps checkpoints, and stops the run if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vigor_client.integrations.trl.distributed import on_main_process
from vigor_trainer.monitoring.collapse import CollapseWatch

if TYPE_CHECKING:
    from transformers import TrainingArguments


class CollapseCallback(TrainerCallback):
    """Keeps the last checkpoint before the first warning and, if it ``stops``, ends training in all processes.

    Only the watch of the main process receives rounds.
    """

    def __init__(self, watch: CollapseWatch, *, stops: bool) -> None:
        self._watch = watch
        self._stops = stops

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Note the checkpoint that was just saved."""
        self._watch.saved(str(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ANN401
        """Protect the last good checkpoint before the next one is saved; stop if the watch has warned."""
        if self._watch.has_warned and args.metric_for_best_model is None:
            state.best_model_checkpoint = self._watch.last_good_checkpoint  # --save_total_limit keeps this checkpoint
        if self._stops and on_main_process(lambda: self._watch.has_warned):
            control.should_training_stop = True
