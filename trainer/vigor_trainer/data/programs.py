"""Code tasks: checks whether the program in a completion passes the tests of its task.

Tests are Python statements that follow the program, or pairs of standard input and output.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from vigor_trainer.data.answers import Judged, is_boxed, judge
from vigor_trainer.data.sandbox import Limits, output_of, passes_statements

MAX_TESTS = 100
MAX_PROGRAMS_AT_ONCE = 8

_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def program_tests(value: object) -> str:
    """Return the tests of a row as JSON: a list of statements, or of objects with ``input`` and ``output``.

    Raises:
        ValueError: the tests are neither; says what they must be.
    """
    tests = cast("list[object]", value) if isinstance(value, list) else [value]
    if not 1 <= len(tests) <= MAX_TESTS:
        raise ValueError(f"has {len(tests)} tests: give 1 to {MAX_TESTS}")
    if not (all(map(_is_statement, tests)) or all(map(_is_pair, tests))):
        raise ValueError("must be Python statements, or objects with the texts `input` and `output`")
    return json.dumps(tests)


def program_of(completion: str) -> str | None:
    """Return the last closed fenced block of code; None if there is none."""
    blocks = _FENCED.findall(completion)
    return blocks[-1] if blocks else None


def passes(completion: str, tests: str, limits: Limits = Limits()) -> bool:  # noqa: B008 - it is frozen
    """Return whether the completion's program passes all tests (JSON of ``program_tests``). Pairs are run one by one.

    Lines of output are compared without the white space at their ends, and without empty lines at the end.
    """
    program = program_of(completion)
    if program is None:
        return False
    given: list[Any] = json.loads(tests)
    if isinstance(given[0], str):
        return passes_statements(program, "\n".join(given), limits)
    return all(_gives(output_of(program, pair["input"], limits), pair["output"]) for pair in given)


def judge_all(completions: Sequence[str], answers: Sequence[str | None], tests: Sequence[str | None]) -> list[Judged]:
    """Judge each completion by the tests of its task, else by its answer. At most 8 programs run at the same time."""
    with ThreadPoolExecutor(min(MAX_PROGRAMS_AT_ONCE, os.cpu_count() or 1)) as pool:
        verdicts = [
            None if given is None else pool.submit(passes, completion, given)
            for completion, given in zip(completions, tests, strict=True)
        ]
        # math-verify limits its time by a signal, which works only in the main thread.
        return [
            judge(completion, answer) if verdict is None else Judged(None, verdict.result(), is_boxed(completion))
            for completion, answer, verdict in zip(completions, answers, verdicts, strict=True)
        ]


def _is_statement(test: object) -> bool:
    return isinstance(test, str) and bool(test.strip())


def _is_pair(test: object) -> bool:
    if not isinstance(test, dict):
        return False
    fields = cast("dict[str, object]", test)
    return fields.keys() == {"input", "output"} and all(isinstance(value, str) for value in fields.values())


def _gives(output: bytes | None, expected: str) -> bool:
    return output is not None and _lines(output.decode(errors="replace")) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
