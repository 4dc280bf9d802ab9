"""Finds the checkpoint from which a run resumes, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vigor_trainer.errors import UnsupportedSettingError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its directory, and the number of optimizer steps taken."""

    directory: Path
    step: int


def find_checkpoint(setting: str | bool | None, output_dir: Path) -> Checkpoint | None:
    """Return the checkpoint that ``--resume_from_checkpoint`` asks for; None for a new run.

    ``true`` means the last complete checkpoint in ``output_dir``: one that was being saved when a run was killed lacks
    the trainer's state, which is written last. ``false`` means a new run, anything else is a directory.

    Raises:
        UnsupportedSettingError: the checkpoint does not exist, or is not complete.
    """
    match setting.lower() if isinstance(setting, str) else setting:
        case None | False | "false":
            return None
        case True | "true":
            return _required_checkpoint(output_dir)
        case _:
            return _checkpoint(Path(str(setting)))


def last_checkpoint(output_dir: Path) -> Checkpoint | None:
    """Return the last complete checkpoint in a directory; None if it has no such checkpoint."""
    directories = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    whole = [Checkpoint(directory, step) for directory in directories if (step := _step_of(directory)) is not None]
    return max(whole, key=lambda checkpoint: checkpoint.step, default=None)


def _required_checkpoint(output_dir: Path) -> Checkpoint:
    if (checkpoint := last_checkpoint(output_dir)) is None:
        raise UnsupportedSettingError(
            f"--resume_from_checkpoint true: there is no complete checkpoint in {output_dir}; leave the "
            "flag out to start a new run"
        )
    return checkpoint


def _checkpoint(directory: Path) -> Checkpoint:
    step = _step_of(directory)
    if step is None:
        raise UnsupportedSettingError(
            f"--resume_from_checkpoint: {directory} is not a checkpoint: it has no readable {TRAINER_STATE_NAME}"
        )
    return Checkpoint(directory, step)


def _step_of(directory: Path) -> int | None:
    """Return the number of steps the trainer had taken; None if its state is missing or cannot be read."""
    try:
        state = json.loads((directory / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    step = cast("dict[str, object]", state).get("global_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None
