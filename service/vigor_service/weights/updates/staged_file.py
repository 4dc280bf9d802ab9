"""Receives one file into staging: with bounded memory, a checksum on the fly, and writes off the event loop."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import UpdateFile
from vigor_client.weight_format.digest import PREFIX, new_hasher
from vigor_service.errors import DeadlineExceededError, InvalidRequestError, invalid_request
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.storage.staging import refusing_full_disk

BUFFER_BYTES = 4 << 20


def describe_file(name: str, file: BinaryIO) -> Generator[None, None, UpdateFile]:
    """Return the announcement of an open file, which is read once, in steps of one buffer."""
    hasher, num_bytes = new_hasher(), 0
    while data := file.read(BUFFER_BYTES):
        hasher.update(data)
        num_bytes += len(data)
        yield
    return UpdateFile(name=name, num_bytes=num_bytes, checksum=PREFIX + hasher.hexdigest())


def temporary_path(path: Path) -> Path:
    """Return a new path in the same directory. It begins with a dot, which no announced name does."""
    return path.with_name(f".{secrets.token_hex(8)}.part")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """The place of one announced file in staging. ``on_progress`` is called with the bytes so far after each buffer."""

    announced: UpdateFile
    path: Path
    threads: FileThreads
    stall_seconds: float
    on_progress: Callable[[int], None]

    async def write(self, chunks: AsyncIterator[bytes]) -> None:
        """Write the chunks to ``path``, which appears only when all bytes have arrived with the announced checksum.

        At most one write is in flight, so at most two buffers are held.

        Raises:
            InvalidRequestError: more or fewer bytes than announced, or another checksum.
            DeadlineExceededError: a buffer took longer than ``stall_seconds`` to arrive, or the disk does not answer.
            StagingFullError: the disk is full.
        """
        partial, name = _PartialFile(temporary_path(self.path)), self.announced.name
        try:
            with refusing_full_disk(f"file {name} of the update does not fit"):
                file = await self.threads.run("staging", partial.create)
                digest = await self._write_all(chunks, _Writer(file, self.threads))
                if digest != self.announced.checksum:
                    raise self._refusal(f"has checksum {digest}, {self.announced.checksum} was announced")
                await self.threads.run("staging", partial.path.replace, self.path)
        except TimeoutError as error:
            message = f"file {name}: less than {BUFFER_BYTES} bytes arrived within {self.stall_seconds} seconds"
            raise DeadlineExceededError(message) from error
        finally:
            await _to_its_end(self.threads.run("staging", partial.close_and_remove))

    async def _write_all(self, chunks: AsyncIterator[bytes], writer: _Writer) -> str:
        """Return the digest of what was written."""
        received, num_bytes = 0, self.announced.num_bytes
        async with asyncio.timeout(self.stall_seconds) as limit, writer:
            async for buffer in _coalesce(chunks):
                received += len(buffer)
                if received > num_bytes:
                    raise self._refusal(f"has more than the {num_bytes} bytes that were announced")
                await writer.write(buffer)
                limit.reschedule(asyncio.get_running_loop().time() + self.stall_seconds)
                self.on_progress(received)
        if received < num_bytes:
            raise self._refusal(f"has {received} bytes, {num_bytes} were announced")
        return PREFIX + writer.hasher.hexdigest()

    def _refusal(self, message: str) -> InvalidRequestError:
        place = FieldError(loc=["files", self.announced.name], msg=message)
        return invalid_request([place], consequence="the file was discarded and may be sent again")


async def _to_its_end(work: Awaitable[None]) -> None:
    """Await work that must not be left undone: its caller may be cancelled more than once, by its client and by a drop.

    Raises:
        CancelledError: the caller was cancelled; the work has ended, or continues after a second cancellation.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _PartialFile:
    """A file that threads create and remove. After its removal, a late `create` raises instead of creating it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def create(self) -> BinaryIO:
        with self._lock:
            if self._is_over:
                raise InterruptedError(f"{self.path.name} was given up")
            self._file = self.path.open("xb", buffering=0)
            return self._file

    def close_and_remove(self) -> None:
        with self._lock:
            self._is_over = True
            if self._file is not None:
                self._file.close()
            self.path.unlink(missing_ok=True)


async def _coalesce(chunks: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    """Yield full buffers, and the rest at the end. Two buffers are reused alternately, which avoids page faults.

    So a buffer's content is valid until the generator is advanced twice.
    """
    buffers = cycle([memoryview(bytearray(BUFFER_BYTES)) for _ in range(2)])
    buffer, filled = next(buffers), 0
    async for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: BUFFER_BYTES - filled]
            buffer[filled : filled + len(taken)] = taken
            filled, rest = filled + len(taken), rest[len(taken) :]
            if filled == BUFFER_BYTES:
                yield buffer
                buffer, filled = next(buffers), 0
    yield buffer[:filled]


class _Writer:
    """Writes and hashes in a thread while the next buffer fills."""

    def __init__(self, file: BinaryIO, threads: FileThreads) -> None:
        self.hasher = new_hasher()
        self._file = file
        self._threads = threads
        self._in_flight: asyncio.Task[None] | None = None

    async def write(self, buffer: memoryview) -> None:
        await self._settle()
        self._in_flight = asyncio.create_task(self._threads.run("staging", self._write_now, buffer))

    async def __aenter__(self) -> _Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._settle()

    async def _settle(self) -> None:
        """Wait for the write in flight, also if the upload ends early, because its file is closed next."""
        if self._in_flight is not None:
            task, self._in_flight = self._in_flight, None
            await _to_its_end(task)

    def _write_now(self, buffer: memoryview) -> None:
        self.hasher.update(buffer)
        while buffer:
            buffer = buffer[self._file.write(buffer) :]
