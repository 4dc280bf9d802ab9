"""One file of an update as the body of a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vigor_client.schemas.weights import UpdateFile
from vigor_service.weights.updates.source import Bring, UpdateSource
from vigor_service.weights.updates.update import Update


class UploadSource(UpdateSource):
    """The file ``file_name`` as the chunks of a request body, whose ``Content-Length`` may be unknown."""

    name = "upload"
    takes_turns = False

    def __init__(self, file_name: str, chunks: AsyncIterator[bytes], *, content_length: int | None) -> None:
        self._file_name = file_name
        self._chunks = chunks
        self._content_length = content_length

    def wanted(self, update: Update) -> Sequence[UpdateFile]:
        """Return the file's announcement.

        Raises:
            InvalidRequestError: the file was not announced, or was announced with another length.
        """
        return [update.announced(self._file_name, self._content_length)]

    @asynccontextmanager
    async def started(self, update: Update, files: Sequence[UpdateFile]) -> AsyncGenerator[Bring]:  # noqa: ARG002 - the protocol's signature
        """Write the body into staging."""
        yield lambda staged: staged.write(self._chunks)
