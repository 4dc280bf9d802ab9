"""The trainer's errors.

    TrainerError
    ├── InvalidTaskError           the dataset cannot be read as prompts; names the place
    ├── InvalidModelError          the model's tokenizer cannot be loaded
    ├── InvalidRunError            a directory is not a run, or not a complete one
    ├── InterruptedRunError        Ctrl-C during the steps; says what is saved
    └── UnsupportedSettingError    a setting cannot be used, or the reward would not be exact with it

Each stops the run with its message; no step is trained with guessed rewards. A failure in a round is an error of the
client (`vigor_client.errors`) or of the TRL layer (`vigor_client.integrations.trl.errors`).
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all errors that the trainer raises itself; the client's errors have their own tree."""


class InvalidTaskError(TrainerError):
    """The dataset cannot be read as prompts."""


class InvalidModelError(TrainerError):
    """There is no model at the place given."""


class InvalidRunError(TrainerError):
    """A directory does not hold a complete run of this version."""


class InterruptedRunError(TrainerError):
    """Ctrl-C ended a run after its first step; the message says what was saved."""


class UnsupportedSettingError(TrainerError):
    """A setting cannot be used, or service and trainer would not hold the same weights with it."""
