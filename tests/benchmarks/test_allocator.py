"""What serves memory is named, and gives back what is free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.allocator import allocator_name

JEMALLOC = next(iter(sorted(Path("/usr/lib").glob("*/libjemalloc.so.2"))), None)
_SCRIPT = """
from benchmarks.allocator import allocator_name, give_back
from vigor_service.engine.memory.malloc import resident_bytes
blocks = [bytearray(b"x" * 100_000) for _ in range(600)]
last = bytearray(b"x" * 100_000)  # stays: the heap cannot shrink from its end
full = resident_bytes()
del blocks
give_back()
print(allocator_name(), full - resident_bytes() > 40_000_000)
"""


def in_own_process(**environment: str) -> str:
    command = [sys.executable, "-c", _SCRIPT]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.skipif(JEMALLOC is None, reason="jemalloc is not installed (Debian: libjemalloc2)")
def test_a_preloaded_jemalloc_is_named_and_purged() -> None:
    assert in_own_process(LD_PRELOAD=str(JEMALLOC)) == "jemalloc True\n"


def test_the_c_library_is_named_and_trimmed() -> None:
    if "jemalloc" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("these tests run under jemalloc")
    name, has_shrunk = in_own_process().rsplit(maxsplit=1)
    assert (name.split()[0], has_shrunk) == (allocator_name().split()[0], "True")
