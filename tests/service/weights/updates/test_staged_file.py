import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from vigor_client.schemas.weights import UpdateFile
from vigor_client.weight_format.digest import checksum
from vigor_service.errors import ClientGoneError, DeadlineExceededError, InvalidRequestError
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.updates.staged_file import BUFFER_BYTES, StagedFile, _PartialFile

DATA = bytes(range(256)) * 50_000  # three buffers and a bit


def _announced(data: bytes = DATA, *, num_bytes: int | None = None) -> UpdateFile:
    return UpdateFile(name="a.safetensors", num_bytes=num_bytes or len(data), checksum=checksum(data))


async def _chunks(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _pieces(data: bytes = DATA, size: int = 60_000) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _receive(
    chunks: AsyncIterator[bytes], path: Path, announced: UpdateFile, *, stall_seconds: float = 20.0
) -> list[int]:
    progress: list[int] = []
    staged = StagedFile(
        announced=announced,
        path=path,
        threads=FileThreads(),
        stall_seconds=stall_seconds,
        on_progress=progress.append,
    )
    asyncio.run(staged.write(chunks))
    return progress


def _staged(path: Path) -> StagedFile:
    return StagedFile(
        announced=_announced(), path=path, threads=FileThreads(), stall_seconds=20, on_progress=lambda _: None
    )


def test_the_file_appears_with_its_bytes(tmp_path: Path) -> None:
    progress = _receive(_chunks(_pieces()), tmp_path / "a", _announced())
    assert (tmp_path / "a").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert progress == [*range(BUFFER_BYTES, len(DATA), BUFFER_BYTES), len(DATA)]


def test_a_wrong_checksum_is_refused_with_both_and_leaves_nothing(tmp_path: Path) -> None:
    flipped = bytes([DATA[0] ^ 1]) + DATA[1:]
    with pytest.raises(InvalidRequestError) as refused:
        _receive(_chunks(_pieces(flipped)), tmp_path / "a", _announced())
    (place,) = refused.value.errors
    assert place.loc == ["files", "a.safetensors"]
    assert checksum(flipped) in place.msg
    assert checksum(DATA) in place.msg
    assert list(tmp_path.iterdir()) == []


def test_too_few_bytes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="1 validation error") as refused:
        _receive(_chunks(_pieces()[:-1]), tmp_path / "a", _announced())
    assert f"{len(DATA)} were announced" in refused.value.errors[0].msg
    assert list(tmp_path.iterdir()) == []


def test_too_many_bytes_are_refused_before_they_have_all_come(tmp_path: Path) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(60_000)

    with pytest.raises(InvalidRequestError):
        _receive(endless(), tmp_path / "a", _announced(num_bytes=1000))
    assert taken * 60_000 < 2 * BUFFER_BYTES
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        for piece in _pieces()[:100]:
            yield piece
        raise ClientGoneError("gone")

    with pytest.raises(ClientGoneError):
        _receive(breaking(), tmp_path / "a", _announced())
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_stalls_is_given_up(tmp_path: Path) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceededError, match=r"0\.05 seconds"):
        _receive(stalling(), tmp_path / "a", _announced(), stall_seconds=0.05)
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        for piece in _pieces():
            yield piece
        begun.set()
        await asyncio.Event().wait()

    receiving = asyncio.ensure_future(_staged(tmp_path / "a").write(stalling()))
    await begun.wait()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert list(tmp_path.iterdir()) == []


async def test_the_loop_stays_free_while_bytes_are_written(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    await _staged(tmp_path / "a").write(_chunks(_pieces()))
    ticking.cancel()
    assert ticks > len(DATA) // BUFFER_BYTES


async def test_an_upload_that_is_cancelled_twice_is_closed_and_removed(tmp_path: Path) -> None:
    """Its client goes away, and its update is dropped, while all threads of the disk are busy."""
    threads, begun, disk_answers = FileThreads(), asyncio.Event(), threading.Event()

    async def chunks() -> AsyncIterator[bytes]:
        begun.set()
        await asyncio.Event().wait()
        yield b""

    staged = StagedFile(
        announced=_announced(), path=tmp_path / "a", threads=threads, stall_seconds=20, on_progress=lambda _: None
    )
    receiving = asyncio.create_task(staged.write(chunks()))
    await begun.wait()
    busy = [asyncio.create_task(threads.run("staging", disk_answers.wait, 20)) for _ in range(4)]
    await asyncio.sleep(0)
    for _ in range(2):
        receiving.cancel()
        await asyncio.sleep(0.01)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    disk_answers.set()
    await asyncio.wait([receiving])
    await asyncio.gather(*busy)
    while not threads.is_idle:
        await asyncio.sleep(0.01)
    assert receiving.cancelled()
    assert list(tmp_path.iterdir()) == []
    threads.close()


def test_a_file_that_is_made_after_it_was_given_up_does_not_stay(tmp_path: Path) -> None:
    partial = _PartialFile(tmp_path / "a")
    partial.close_and_remove()  # its sender ended while a thread was about to make it
    with pytest.raises(InterruptedError):
        partial.create()
    assert not list(tmp_path.iterdir())
