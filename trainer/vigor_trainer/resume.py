"""Finds the checkpoint that a run goes on from, before anything is loaded."""

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
    """A whole checkpoint: where it is, and how many optimizer steps had been taken."""

    directory: Path
    step: int


def find_checkpoint(setting: str | bool | None, output_dir: Path) -> Checkpoint | None:
    """Return what ``--resume_from_checkpoint`` asks for; None: a new run.

    ``true`` is the last whole checkpoint in ``output_dir``: one that was being saved when a run was killed has no
    state of the trainer, which is written last. ``false`` is none, anything else a directory.

    Raises:
        UnsupportedSettingError: there is no such checkpoint, or it is not whole.
    """
    match setting.lower() if isinstance(setting, str) else setting:
        case None | False | "false":
            return None
        case True | "true":
            return _required_checkpoint(output_dir)
        case _:
            return _checkpoint(Path(str(setting)))


def last_checkpoint(output_dir: Path) -> Checkpoint | None:
    """Return the last whole checkpoint in a directory; None if there is none."""
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
    """Return how many steps the trainer had taken; None where its state is missing or cannot be read."""
    try:
        state = json.loads((directory / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    step = cast("dict[str, object]", state).get("global_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None
