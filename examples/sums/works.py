"""Two-digit sums with scratch work that contains known kinds of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from random import Random

NUMBERS = range(10, 100)
SUMS = list(product(NUMBERS, NUMBERS))
CHARACTERS = "0123456789+=?\n"
MAX_WORK_CHARACTERS = len("18\n19\n198")
SLIP_RATE = 0.33
"""Probability that each of the two partial sums of a work is wrong, so that 45 % of the answers are right."""
DROPPED_CARRY_RATE = 0.65

Worker = Callable[[int, int, Random], str]
"""Writes the work of one sum: the sum of the units, the sum of the tens with the carry, and the answer."""


def prompt_of(left: int, right: int) -> str:
    """Return the prompt of a sum."""
    return f"{left}+{right}=?\n"


def with_random_slips(left: int, right: int, draw: Random) -> str:
    """Return work in which each of the two partial sums may be replaced by a random number, used in what follows."""
    units = _slip(left % 10 + right % 10, draw)
    carry = min(units // 10, 1)
    return _work(units, _slip(left // 10 + right // 10 + carry, draw))


def with_dropped_carries(left: int, right: int, draw: Random) -> str:
    """Return work that drops most carries, so that for sums with a carry a wrong answer is the most frequent."""
    units = left % 10 + right % 10
    carry = units // 10 if draw.random() >= DROPPED_CARRY_RATE else 0
    return _work(units, left // 10 + right // 10 + carry)


def write_questions(path: Path, sums: Iterable[tuple[int, int]] = SUMS) -> None:
    """Write sums with their answers, in the format of ``--dataset``; by default all sums of two two-digit numbers."""
    rows = ({"question": prompt_of(left, right), "answer": str(left + right)} for left, right in sums)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def split_sums(num_held_out: int, *, seed: int = 0) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the sums to train on, and ``num_held_out`` others, drawn at random."""
    shuffled = Random(seed).sample(SUMS, len(SUMS))
    return shuffled[num_held_out:], shuffled[:num_held_out]


def _work(units: int, tens: int) -> str:
    return f"{units}\n{tens}\n{10 * tens + units % 10}"


def _slip(total: int, draw: Random) -> int:
    if draw.random() >= SLIP_RATE:
        return total
    return draw.choice([other for other in range(20) if other != total])
