"""Moves the missing files of an update out of a directory of this machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from vigor_client.schemas.weights import UpdateFile
from vigor_service.errors import ServiceError
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.sources.move_in import give_back, require_takable, take_file
from vigor_service.weights.updates.lifecycle import State
from vigor_service.weights.updates.source import Bring, UpdateSource
from vigor_service.weights.updates.staged_file import StagedFile
from vigor_service.weights.updates.update import Update


class DirectorySource(UpdateSource):
    """Files that are moved from ``directory`` into staging, or copied if they cannot be moved.

    If one file is refused, all are put back.
    """

    name = "directory"

    def __init__(self, directory: Path, threads: FileThreads) -> None:
        self._directory = directory
        self._threads = threads

    @asynccontextmanager
    async def started(self, update: Update, files: Sequence[UpdateFile]) -> AsyncGenerator[Bring]:
        """Move the files in.

        Raises:
            InvalidRequestError, StagingFullError, DeadlineExceededError: as `take_file`; the directory is restored.
        """
        taken: list[StagedFile] = []

        async def take(staged: StagedFile) -> None:
            steps = take_file(self._directory / staged.announced.name, staged.path, staged.announced)
            await self._threads.run_steps("local", steps)
            taken.append(staged)

        for file in files:
            await self._threads.run("local", require_takable, self._directory / file.name, file)
        try:
            yield take
        except ServiceError:
            await self._give_back(update, taken)
            raise

    async def _give_back(self, update: Update, taken: Sequence[StagedFile]) -> None:
        if update.lifecycle.state is not State.RECEIVING:  # staging is removed or being verified
            return
        for staged in taken:
            update.received.discard(staged.announced.name)
            await self._threads.run("local", give_back, staged.path, self._directory / staged.announced.name)
