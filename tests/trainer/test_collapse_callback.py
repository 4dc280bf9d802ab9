"""What the collapse watch has to do with TRL's training loop."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from tests.trainer.example_records import example_record
from vigor_trainer.collapse_callback import CollapseCallback
from vigor_trainer.monitoring.collapse import CollapseWatch


class Run:
    """A training loop of two steps, each with a checkpoint; the second step brings a warning."""

    def __init__(self, directory: Path, *, stops: bool, best: str | None = None) -> None:
        self.arguments = TrainingArguments(output_dir=str(directory), use_cpu=True, metric_for_best_model=best)
        self.state, self.control = TrainerState(best_model_checkpoint=best), TrainerControl()
        self.watch = CollapseWatch(ranks=True, on_warning=lambda _: None, num_rounds=2)
        callback = CollapseCallback(self.watch, stops=stops)
        for step in (1, 2):
            self.watch.observe(example_record(step - 1, norm_spread=0.0))
            self.state.global_step = step
            callback.on_step_end(self.arguments, self.state, self.control)
            (directory / f"checkpoint-{step}").mkdir()
            callback.on_save(self.arguments, self.state, self.control)


def test_the_last_good_checkpoint_is_not_deleted_with_older_ones(tmp_path: Path) -> None:
    run = Run(tmp_path, stops=False)
    assert run.watch.last_good_checkpoint == str(tmp_path / "checkpoint-1")
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate_checkpoints(str(tmp_path), save_total_limit=1, best_model_checkpoint=run.state.best_model_checkpoint)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    assert not run.control.should_training_stop


def test_a_warning_stops_training_where_that_is_wanted(tmp_path: Path) -> None:
    assert Run(tmp_path, stops=True).control.should_training_stop


def test_a_best_checkpoint_that_the_user_asks_for_stays_the_best_one(tmp_path: Path) -> None:
    assert Run(tmp_path, stops=False, best="loss").state.best_model_checkpoint == "loss"
