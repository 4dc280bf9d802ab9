"""When free memory of the heap goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vigor_service.engine.batching.cpu_workers import MAX_WORKERS
from vigor_service.engine.memory.malloc import MAX_ARENAS, SLACK_BYTES, HeapTrimming, resident_bytes, trim


class Process:
    """A process whose resident size is told, and whose heap gives back what is told."""

    def __init__(self, resident: int | None) -> None:
        self.resident = resident
        self.num_trims = 0

    def trim(self) -> None:
        self.num_trims += 1
        assert self.resident is not None
        self.resident -= SLACK_BYTES

    def trimming(self) -> HeapTrimming:
        return HeapTrimming(trim=self.trim, resident_bytes=lambda: self.resident)


def test_the_heap_is_trimmed_when_the_process_has_grown_by_more_than_the_slack() -> None:
    process = Process(1000)
    trimming = process.trimming()
    for grown, num_trims in ((SLACK_BYTES, 0), (1, 1), (SLACK_BYTES, 1), (1, 2)):
        process.resident = (process.resident or 0) + grown
        trimming.after_batch()
        assert process.num_trims == num_trims


def test_a_size_that_nobody_knows_is_left_alone() -> None:
    process = Process(None)
    process.trimming().after_batch()
    assert process.num_trims == 0


def test_a_trim_gives_freed_pages_back() -> None:
    blocks = [bytearray(b"x" * 60_000) for _ in range(4000)]  # from the heap, not mapped
    kept = blocks[-1]
    before = resident_bytes()
    del blocks
    trim()
    after = resident_bytes()
    assert len(kept) == 60_000
    assert before is not None
    assert after is not None
    assert before - after > 100 << 20


def test_the_resident_size_is_unknown_without_a_proc_file_system(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path) is None


MAPPED_BLOCKS = """
import ctypes, sys
from vigor_service.engine.memory.malloc import tune_heap

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        ("rest", ctypes.c_size_t * 5)
    ]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
tune_heap(short_of_memory="short" in sys.argv)
large = bytearray(24 << 20)
del large  # from here on glibc takes blocks of up to this size from its heap
before = mallinfo2().hblks
block = bytearray(2 << 20)
print(mallinfo2().hblks - before)
"""

THREADS_AT_ONCE = """
import ctypes
from threading import Barrier, Thread
from vigor_service.engine.memory.malloc import tune_heap

tune_heap(short_of_memory=False)
barrier = Barrier(20)

def allocate():
    block = bytearray(100_000)
    barrier.wait()

threads = [Thread(target=allocate) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.parametrize(
    ("arguments", "tuning", "num_mapped"),
    [
        (("short",), {}, 1),
        ((), {}, 0),
        (("short",), {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, 0),
    ],
)
def test_large_blocks_stay_mapped_where_memory_is_short_unless_the_environment_tunes_the_heap(
    arguments: tuple[str, ...], tuning: dict[str, str], num_mapped: int
) -> None:
    assert int(_output_of(MAPPED_BLOCKS, tuning, *arguments)) == num_mapped


@pytest.mark.parametrize(
    ("tuning", "num_arenas"), [({}, min(len(os.sched_getaffinity(0)), MAX_ARENAS)), ({"MALLOC_ARENA_MAX": "5"}, 5)]
)
def test_threads_share_an_arena_for_each_worker_unless_the_environment_tunes_the_heap(
    tuning: dict[str, str], num_arenas: int
) -> None:
    assert _output_of(THREADS_AT_ONCE, tuning).count(b"<heap nr=") == num_arenas


def test_there_are_as_many_arenas_as_workers() -> None:
    assert MAX_ARENAS == MAX_WORKERS


def _output_of(script: str, tuning: dict[str, str], *arguments: str) -> bytes:
    untuned = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, env=untuned | tuning).stdout
