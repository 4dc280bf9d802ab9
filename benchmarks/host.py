"""The host of a virtual machine takes time from it, most of all while it takes freed pages back: what is timed waits.

After a process with 16 GB has ended, the host of such a machine was seen to take an eighth of its processors' time for
half a minute of work; /proc/stat calls it stolen, and counts it only while there is something to run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

MOST_STOLEN = 0.01
"""The part of the processors' time at which a host leaves its machine alone."""
_PROBE_SECONDS = 2.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def add_settle_seconds(parser: argparse.ArgumentParser) -> None:
    """Let the user say how long each measurement may wait."""
    parser.add_argument(
        "--settle-seconds",
        type=float,
        default=90.0,
        metavar="S",
        help="before what is timed, wait at most so long until the host of a virtual machine leaves it alone (default: "
        "%(default)g)",
    )


def settle(most_seconds: float, probe: Callable[[], float] | None = None) -> None:
    """Keep all processors busy for two seconds at a time until the host takes at most 1 % of it, or the time is over.

    0 seconds: return at once. ``probe`` returns the part of the processors' time that was stolen while they were busy;
    what is stolen after that is for the measurement to report.
    """
    probe = probe or stolen_while_busy
    deadline = time.monotonic() + most_seconds
    while time.monotonic() < deadline and probe() > MOST_STOLEN:
        pass


def stolen_while_busy(seconds: float = _PROBE_SECONDS) -> float:
    """Return the share of steal time while all processors computed products for so long."""
    before = stolen_seconds()
    matrix = torch.ones(256, 256)
    product = torch.empty_like(matrix)
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        torch.mm(matrix, matrix, out=product)
    return stolen_part(before, time.monotonic() - start)


def stolen_part(before: float, seconds: float) -> float:
    """Return the steal time since ``before`` (of ``stolen_seconds``), by all processors' time in these seconds."""
    return (stolen_seconds() - before) / (seconds * (os.cpu_count() or 1))


def stolen_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Return for how many seconds of a processor the host made this machine wait since it began; 0 without a host."""
    return int(stat.read_text().split(maxsplit=9)[8]) / _TICKS_PER_SECOND
