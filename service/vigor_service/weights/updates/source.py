"""What the manager asks of a source of files: an upload, a directory of this machine, a broadcast."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol, TypeAlias

from vigor_client.schemas.weights import UpdateFile
from vigor_service.weights.updates.staged_file import StagedFile
from vigor_service.weights.updates.update import Update

Bring: TypeAlias = Callable[[StagedFile], Coroutine[Any, Any, None]]
"""Brings one file into staging. When it is cancelled, or raises, nothing of the file stays there."""


class UpdateSource(Protocol):
    """Where files of an update come from.

    ``name`` is for the log. A source with ``takes_turns`` waits for the one before it that does, and finds the files
    of that one there; another one ends an older sender of the same file.
    """

    name: ClassVar[str]
    takes_turns: ClassVar[bool] = True

    def wanted(self, update: Update) -> Sequence[UpdateFile]:
        """Return the files that it is to bring, in this order: all that have not come yet.

        Raises:
            InvalidRequestError: it cannot bring what was announced.
        """
        return update.missing

    def started(self, update: Update, files: Sequence[UpdateFile]) -> AbstractAsyncContextManager[Bring]:
        """Start the source for as long as the context lasts. An error that ends the context cancels it.

        Raises:
            InvalidRequestError: one of the files cannot be brought.
            DeadlineExceededError: the source, or its disk, does not answer.
        """
        ...
