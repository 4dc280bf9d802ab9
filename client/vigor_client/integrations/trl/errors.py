"""The errors of the TRL layer. Each one stops the run with its message, or TRL leaves the failed call out of the step.

    VigorError
    ├── UnsupportedTrlError    the installed TRL lacks something that this code reads
    ├── MainProcessError       the main process failed in a call that it makes for all processes
    └── WrongAnswerError       the service answered, but not about the tokens that were sampled

Completions that are not whole groups are an ``InvalidGroupError``, which all adapters share.
"""

from __future__ import annotations

from vigor_client.errors import VigorError


class UnsupportedTrlError(VigorError):
    """The installed TRL lacks something that is read from it; names both versions and what is missing."""


class MainProcessError(VigorError):
    """The main process failed in a call that it makes for all processes. The cause is in that process' output."""


class WrongAnswerError(VigorError):
    """The service's scores are not about the tokens that were sampled, so none of their rewards is used."""
