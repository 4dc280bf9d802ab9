"""What Linux says that a process has used: no wall time, which other processes share."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.measuring import resident_bytes

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads so far, to a tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def main_thread_seconds(pid: int) -> float:
    """Return the processor time of the main thread, which runs the event loop."""
    nanoseconds, *_ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(nanoseconds) / 1e9


def peak_bytes(pid: int) -> int:
    """Return the most memory that was resident since ``reset_peak``."""
    return resident_bytes("VmHWM", pid=pid)


def reset_peak(pid: int) -> int:
    """Let the peak begin anew with what is resident now, and return that."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


def num_descriptors(pid: int) -> int:
    """Return how many files and connections the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def num_threads(pid: int) -> int:
    """Return how many threads it runs."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
