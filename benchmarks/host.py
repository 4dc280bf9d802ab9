"""Delays timed measurements on a virtual machine until its host stops taking processor time from it.

A host takes most time while it reclaims freed pages. After a process with 16 GB had ended, a host was seen to take an
eighth of the processors' time for half a minute of work. /proc/stat calls this time stolen, and counts it only while
there is something to run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

MOST_STOLEN = 0.01
"""Maximum share of stolen processor time at which a measurement may start."""
_PROBE_SECONDS = 2.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def add_settle_seconds(parser: argparse.ArgumentParser) -> None:
    """Add the option that limits how long each measurement may wait."""
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

    With 0 seconds, return at once. ``probe`` returns the share of the processors' time that was stolen while they were
    busy. Time stolen after that has to be reported by the measurement.
    """
    probe = probe or stolen_while_busy
    deadline = time.monotonic() + most_seconds
    while time.monotonic() < deadline and probe() > MOST_STOLEN:
        pass


def stolen_while_busy(seconds: float = _PROBE_SECONDS) -> float:
    """Return the share of stolen time while all processors compute products for ``seconds``."""
    before = stolen_seconds()
    matrix = torch.ones(256, 256)
    product = torch.empty_like(matrix)
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        torch.mm(matrix, matrix, out=product)
    return stolen_part(before, time.monotonic() - start)


def stolen_part(before: float, seconds: float) -> float:
    """Return the time stolen since ``before`` (of ``stolen_seconds``), as a share of all processors' ``seconds``."""
    return (stolen_seconds() - before) / (seconds * (os.cpu_count() or 1))


def stolen_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Return the processor seconds that the host has stolen since this machine booted; 0 without a host."""
    return int(stat.read_text().split(maxsplit=9)[8]) / _TICKS_PER_SECOND
