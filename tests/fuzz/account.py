"""What Linux says that a process has used: no wall time, which other processes share."""

from __future__ import annotations

from pathlib import Path


def main_thread_seconds(pid: int) -> float:
    """Return the processor time of the main thread, which runs the event loop."""
    nanoseconds, *_ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(nanoseconds) / 1e9


def peak_mib(pid: int) -> float:
    """Return the most memory that was resident since ``forget_peak``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) / 1024


def forget_peak(pid: int) -> None:
    """Let the peak begin anew, with what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def num_descriptors(pid: int) -> int:
    """Return how many files and connections the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def num_threads(pid: int) -> int:
    """Return how many threads it runs."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
