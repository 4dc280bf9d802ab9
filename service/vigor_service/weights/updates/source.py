"""Interface between the manager and a source of files: an upload, a directory of this machine, a broadcast."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol, TypeAlias

from vigor_client.schemas.weights import UpdateFile
from vigor_service.weights.updates.staged_file import StagedFile
from vigor_service.weights.updates.update import Update

Bring: TypeAlias = Callable[[StagedFile], Coroutine[Any, Any, None]]
"""Brings one file into staging. If it is cancelled or raises, no part of the file stays there."""


class UpdateSource(Protocol):
    """Source of files of an update.

    ``name`` is for the log. A source with ``takes_turns`` waits until an earlier one of that kind has ended, and then
    brings only files that are still missing. A source without it replaces an older sender of the same file.
    """

    name: ClassVar[str]
    takes_turns: ClassVar[bool] = True

    def wanted(self, update: Update) -> Sequence[UpdateFile]:
        """Return the files that the source is to bring, in this order. By default all that have not arrived yet.

        Raises:
            InvalidRequestError: the source cannot bring what was announced.
        """
        return update.missing

    def started(self, update: Update, files: Sequence[UpdateFile]) -> AbstractAsyncContextManager[Bring]:
        """Start the source for the duration of the context. An error that ends the context cancels the source.

        Raises:
            InvalidRequestError: one of the files cannot be brought.
            DeadlineExceededError: the source, or its disk, does not answer.
        """
        ...
