r"""Finds the answer that a completion gives, and whether it is correct: by math-verify, or by the last number.

Only the rewards `verifier` and `majority` use these judgements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

JUDGING_SECONDS = 5
"""Maximum time to parse an expression, or to compare two."""

# A minus sign counts only where it cannot be a subtraction: "10-4" ends in 4, "= -4" in -4.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\d+(?:,\d{3})*(?:\.\d+)?")
_FINAL = "####"  # GSM8K writes this before its answers
_BOX = "\\boxed{"


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer of a completion, as written there, and whether it is correct.

    ``final`` is None if no answer was found; ``is_correct`` is None if the task has no answer.
    """

    final: str | None
    is_correct: bool | None
    is_boxed: bool


def judge(completion: str, answer: str | None) -> Judged:
    """Return the answer of the completion, and whether it equals ``answer``."""
    return Judged(
        final=final_answer(completion),
        is_correct=None if answer is None else is_correct(completion, answer),
        is_boxed=is_boxed(completion),
    )


def is_correct(completion: str, answer: str) -> bool:
    r"""Return whether the completion gives this answer.

    Equals ``math_verify.verify(parse(answer), parse(completion))``: the content of the last ``\boxed{}`` counts, else
    the last expression. If math-verify finds no expression, the last number counts. An answer without any expression
    must be the whole completion, in upper or lower case.
    """
    expected = answer.rpartition(_FINAL)[2].strip()
    if not _expressions(expected):
        return _words(completion) == _words(answer)
    if _expressions(completion):
        return same_answer(expected, completion)
    return _is_number(expected) and last_number(completion) == last_number(expected)


def final_answer(completion: str) -> str | None:
    r"""Return the text of the last ``\boxed{}``, else of the last expression; None if there is neither."""
    found = _expressions(completion)
    return str(found[-1]) if found else None


def same_answer(gold: str, other: str) -> bool:
    """Return whether the last expressions of both are equal, as math-verify compares them."""
    return gold == other or _verifier()(_expressions(gold), _expressions(other), timeout_seconds=JUDGING_SECONDS)


def majority(finals: Sequence[str | None]) -> str | None:
    """Return the most frequent answer in a group, the earliest if tied; None if no completion gives an answer."""
    counts: dict[str, int] = {}
    for final in (final for final in finals if final is not None):
        known = next((other for other in counts if same_answer(other, final)), final)
        counts[known] = counts.get(known, 0) + 1
    return max(counts, key=lambda answer: counts[answer], default=None)


def is_boxed(completion: str) -> bool:
    r"""Return whether the completion has a closed ``\boxed{}``."""
    _, box, after = completion.rpartition(_BOX)
    depth = 1
    for character in after if box else "":
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return True
    return False


def last_number(text: str) -> Decimal | None:
    """Return the last number in the text, without thousands separators; None if it has no number."""
    numbers = _NUMBER.findall(_plain(text))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(_plain(text).strip("$ .")) is not None


def _plain(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _words(text: str) -> str:
    return text.strip().casefold()


@lru_cache(maxsize=4096)
def _expressions(text: str) -> list[Any]:
    from math_verify import parse  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has none

    return cast("Callable[..., list[Any]]", parse)(_plain(text), parsing_timeout=JUDGING_SECONDS)


def _verifier() -> Callable[..., bool]:
    from math_verify import verify  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has none

    return cast("Callable[..., bool]", verify)
