"""The trainer's errors.

    TrainerError
    ├── InvalidTaskError           the dataset is not what the trainer understands; names the place
    ├── InvalidModelError          the model's tokenizer cannot be loaded
    ├── UnsupportedSettingError    a setting under which the reward would not be exact
    ├── IncompleteGroupError       the completions at hand are not whole groups; a part is never ranked
    ├── WrongAnswerError           the service answered, but not to what was asked
    └── ScoringFailedError         another process of this run could not score

Each stops the run with its message; nothing is trained on a guess.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of everything the trainer raises itself; the client's errors have their own tree."""


class InvalidTaskError(TrainerError):
    """The dataset cannot be read as prompts."""


class InvalidModelError(TrainerError):
    """There is no model at the place given."""


class UnsupportedSettingError(TrainerError):
    """A setting under which service and trainer would not hold the same weights."""


class IncompleteGroupError(TrainerError):
    """The completions of a round are not complete groups."""


class WrongAnswerError(TrainerError):
    """The service's answer does not fit the request, so its rewards cannot be used."""


class ScoringFailedError(TrainerError):
    """The process that scores for all of them failed; its own error is in its own output."""
