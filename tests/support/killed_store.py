"""One update on its way into a state directory, in a process of its own that strace kills at a system call.

The process does what the service does with the directory, on one thread, so that a call is named by its number alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vigor_client.schemas.weights import UpdateEncoding
from vigor_client.weight_format.digest import announce
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.storage.state import StateDirectory, UpdateRecord
from vigor_service.weights.updates.staged_file import StagedFile

CHANGING = (
    "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink",
    "unlinkat", "rmdir", "open", "openat", "creat", "write", "pwrite64", "writev", "ftruncate", "truncate", "fallocate",
    "fsync", "fdatasync", "flock",
)  # fmt: skip
"""System calls that change a directory, or make a change last."""

DEADLINE_SECONDS = 60.0
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Stored:
    """An update as a test has it: what makes version ``version`` of the one before it, and its files."""

    version: int
    encoding: UpdateEncoding
    files: Mapping[str, bytes]

    @property
    def record(self) -> UpdateRecord:
        return UpdateRecord(
            weight_version=self.version,
            weight_digest=_digest(self.version),
            base_version=self.version - 1,
            base_digest=_digest(self.version - 1),
            encoding=self.encoding,
        )


class OneThread(FileThreads):
    """Runs everything where it is asked for."""

    async def run(self, kind: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, ARG002
        return work(*args, **kwargs)


def publish(root: Path, update: Stored) -> None:
    """Start, receive, store and end, as the service does."""
    asyncio.run(_publish(root, update))


async def _publish(root: Path, update: Stored) -> None:
    threads = OneThread()
    state = StateDirectory(root)
    state.read()
    staging = StagingArea(state.staging_root, threads)
    directory = staging.directory("update")
    await staging.create("update", num_bytes=1)
    for name, data in update.files.items():
        staged = StagedFile(
            announced=announce(name, [data]),
            path=directory / name,
            threads=threads,
            stall_seconds=DEADLINE_SECONDS,
            on_progress=lambda _: None,
        )
        await staged.write(_chunks(data))
    state.store(update.record, {name: directory / name for name in update.files})
    await staging.remove(directory)
    staging.close()
    state.close()


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def calls_of_publish(root: Path, update: Stored, log: Path) -> dict[str, int]:
    """Publish; return how often each changing call was made."""
    assert _traced(root, update, "-o", str(log)) == 0
    counts: dict[str, int] = {}
    for name in re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE):
        counts[name] = counts.get(name, 0) + 1
    return counts


def publish_killed(root: Path, update: Stored, call: str, number: int) -> bool:
    """Publish, in a process that is killed instead of making this call for the n-th time; return whether it was."""
    code = _traced(root, update, "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}")
    assert code in (0, -9), code
    return code == -9


def _traced(root: Path, update: Stored, *options: str) -> int | None:
    ours, theirs = _FORKING.Pipe()
    with ours:
        process = _FORKING.Process(target=_wait_and_publish, args=(theirs, root, update))
        with theirs:
            process.start()
        assert ours.recv() == "ready"
        command = ["strace", "-p", str(process.pid), "-e", f"trace={','.join(f'?{name}' for name in CHANGING)}"]
        with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            assert "attached" in attached, attached
            ours.send("go")
            process.join(DEADLINE_SECONDS)
            assert process.exitcode is not None, "it did not end"
            strace.stderr.read()
    code = process.exitcode
    process.close()
    return code


def _wait_and_publish(connection: Connection, root: Path, update: Stored) -> None:
    announce("warm", [b"x"])  # brings xxhash
    connection.send("ready")
    connection.recv()
    publish(root, update)


def _digest(version: int) -> str:
    return f"xxh3-128:{version:032x}"
