"""The errors of the TRL layer. Each stops what it concerns with its message; nothing is trained on a guess.

    VigorError
    ├── UnsupportedTrlError    the installed TRL is not what this code reads
    ├── MainProcessError       the process that calls the service for all of them failed
    └── WrongAnswerError       the service answered, but not about the tokens that were sampled

Completions that are not whole groups are an ``InvalidGroupError``, which all adapters share.
"""

from __future__ import annotations

from vigor_client.errors import VigorError


class UnsupportedTrlError(VigorError):
    """The installed TRL lacks something that is read from it; names both versions and what is missing."""


class MainProcessError(VigorError):
    """The main process failed at what it does for all processes; its own error is in its own output."""


class WrongAnswerError(VigorError):
    """The service's scores are not about the tokens that were sampled, so none of their rewards is used."""
