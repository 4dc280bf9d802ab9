"""One file from the network to the disk: bounded memory, the checksum taken on the way, writes off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vigor_client.digest import PREFIX, announce, new_hasher
from vigor_client.schemas import FieldError, UpdateFile
from vigor_service.errors import DeadlineExceededError, invalid_request
from vigor_service.weights.staging import refusing_full_disk

if TYPE_CHECKING:
    from vigor_client.digest import Hasher

BUFFER_BYTES = 4 << 20


def describe_file(name: str, path: Path) -> UpdateFile:
    """Return what there is to announce of a file on disk, read once."""
    with path.open("rb") as file:
        return announce(name, iter(lambda: file.read(BUFFER_BYTES), b""))


async def receive_file(
    chunks: AsyncIterator[bytes],
    path: Path,
    announced: UpdateFile,
    *,
    stall_seconds: float,
    on_progress: Callable[[], None],
) -> None:
    """Write the chunks to ``path``, which appears only when all bytes are there and have the announced checksum.

    At most one write is in flight, so no more than two buffers are held. ``on_progress`` is called per buffer.

    Raises:
        InvalidRequestError: more or fewer bytes than announced, or another checksum.
        DeadlineExceededError: a buffer took longer than ``stall_seconds`` to arrive.
        StagingFullError: the disk is full.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with refusing_full_disk(f"file {announced.name} of the update does not fit"):
            with partial.open("wb", buffering=0) as file:
                digest = await _write_all(chunks, file, announced, stall_seconds, on_progress)
            if digest != announced.checksum:
                raise _refuse(announced, f"has checksum {digest}, {announced.checksum} was announced")
            partial.replace(path)
    except TimeoutError as error:
        message = f"file {announced.name}: less than {BUFFER_BYTES} bytes came within {stall_seconds} seconds"
        raise DeadlineExceededError(message) from error
    finally:
        await asyncio.to_thread(partial.unlink, missing_ok=True)


async def _write_all(
    chunks: AsyncIterator[bytes],
    file: BinaryIO,
    announced: UpdateFile,
    stall_seconds: float,
    on_progress: Callable[[], None],
) -> str:
    hasher, received = new_hasher(), 0
    async with asyncio.timeout(stall_seconds) as limit, _Writer(file, hasher) as writer:
        async for buffer in _coalesce(chunks):
            received += len(buffer)
            if received > announced.num_bytes:
                raise _refuse(announced, f"has more than the {announced.num_bytes} bytes that were announced")
            await writer.write(buffer)
            limit.reschedule(asyncio.get_running_loop().time() + stall_seconds)
            on_progress()
    if received < announced.num_bytes:
        raise _refuse(announced, f"has {received} bytes, {announced.num_bytes} were announced")
    return PREFIX + hasher.hexdigest()


async def _coalesce(chunks: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    """Yield full buffers, and what is left at the end. Two are used by turns: new ones would be faulted in anew.

    A buffer holds its bytes until the next but one is asked for.
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

    def __init__(self, file: BinaryIO, hasher: Hasher) -> None:
        self._file = file
        self._hasher = hasher
        self._in_flight: asyncio.Task[None] | None = None

    async def write(self, buffer: memoryview) -> None:
        await self._settle()
        self._in_flight = asyncio.create_task(asyncio.to_thread(self._write_now, buffer))

    async def __aenter__(self) -> _Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._settle()

    async def _settle(self) -> None:
        """Wait for the write in flight, also when the upload ends early: nobody else may close its file."""
        if self._in_flight is not None:
            task, self._in_flight = self._in_flight, None
            await asyncio.shield(task)

    def _write_now(self, buffer: memoryview) -> None:
        self._hasher.update(buffer)
        while buffer:
            buffer = buffer[self._file.write(buffer) :]


def _refuse(announced: UpdateFile, message: str) -> Exception:
    place = FieldError(loc=["files", announced.name], msg=message)
    return invalid_request([place], consequence="the file is dropped and may be sent again")
