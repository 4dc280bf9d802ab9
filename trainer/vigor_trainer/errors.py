"""The trainer's errors.

    TrainerError
    ├── InvalidTaskError           the dataset cannot be read as prompts; names the place
    ├── InvalidModelError          the model's tokenizer cannot be loaded
    ├── InvalidRunError            a directory that is not a run, or not a complete one
    ├── InterruptedRunError        Ctrl-C during the steps; says what is saved
    └── UnsupportedSettingError    a setting under which the reward would not be exact

Each stops the run with its message; nothing is trained on a guess. What fails in a round is an error of the client
(`vigor_client.errors`) or of the TRL layer (`vigor_client.integrations.trl.errors`).
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of everything the trainer raises itself; the client's errors have their own tree."""


class InvalidTaskError(TrainerError):
    """The dataset cannot be read as prompts."""


class InvalidModelError(TrainerError):
    """There is no model at the place given."""


class InvalidRunError(TrainerError):
    """A directory holds no run of this version, or not all of it."""


class InterruptedRunError(TrainerError):
    """Ctrl-C ended a run after its first step; the message says what was saved."""


class UnsupportedSettingError(TrainerError):
    """A setting under which service and trainer would not hold the same weights."""
