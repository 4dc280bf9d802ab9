"""The results file of a run over a JSONL file: kept as a partial file until complete, and resumable.

Existing results are compared with the groups line by line, so files of any size can be resumed in little memory.
"""

from __future__ import annotations

import json
import os
import sys
from codecs import lookup
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pydantic

from vigor_client.cli.jsonl_input import JsonlInput
from vigor_client.cli.jsonl_lines import Line, RefusedGroup, ScoredGroup, read_groups
from vigor_client.errors import InputError, VigorError

_MAX_SAID = 10


@dataclass(frozen=True, slots=True)
class Finished:
    """The existing results: the first ``num_groups`` groups, whose scores all come from weights with one digest."""

    num_groups: int = 0
    num_refused: int = 0
    weight_digest: str | None = None


_result = pydantic.TypeAdapter[ScoredGroup | RefusedGroup](ScoredGroup | RefusedGroup)


@contextmanager
def open_results(path: Path | None, *, goes_on: bool) -> Generator[TextIO]:
    """Yield stdout, or a file that appears under its name when it is complete.

    Raises:
        VigorError: the name is a directory's, or standard output is closed.
        OSError: it cannot be written.
    """
    if path is None:
        yield _standard_output()
        return
    if path.is_dir():
        raise VigorError(f"{path}: is a directory; give the name of a file")
    with partial_of(path).open("a" if goes_on else "w", encoding="utf-8") as file:
        yield file
    partial_of(path).replace(path)


def _standard_output() -> TextIO:
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - None where a process has none
        raise VigorError("standard output is closed: give --out")
    return sys.stdout


def write_result(file: TextIO, result: ScoredGroup | RefusedGroup) -> None:
    """Write a line of JSON and flush it. If the encoding of ``file`` is not UTF-8, the line is ASCII with escapes."""
    is_utf8 = lookup(file.encoding or "utf-8").name == "utf-8"
    print(json.dumps(result.model_dump(mode="json"), ensure_ascii=not is_utf8), file=file, flush=True)


class RefusedLines:
    """The lines that have an error in place of scores: their number, and what is wrong with the first of them."""

    def __init__(self, source_name: str, num_before: int = 0) -> None:
        self.num_groups = num_before
        self._source_name = source_name
        self._said: list[str] = []

    def note(self, line: Line, result: ScoredGroup | RefusedGroup) -> None:
        if isinstance(result, RefusedGroup):
            self.num_groups += 1
            if len(self._said) < _MAX_SAID:
                self._said.append(f"{self._source_name}:{line.number}: {result.error.detail}")

    def __str__(self) -> str:
        more = self.num_groups - len(self._said)
        return "; ".join([*self._said, *([f"{more} more in the output"] if more else [])])


def partial_of(path: Path) -> Path:
    """Return the path at which results are kept until they are complete."""
    return path.with_name(path.name + ".partial")


def resume(path: Path, source: JsonlInput) -> Finished:
    """Return the results that an interrupted run left for ``source``, after cutting off an incomplete last line.

    Raises:
        InputError: the file holds something else, or results of different weights; names the line.
    """
    partial = partial_of(path)
    if not partial.exists():
        return Finished()
    finished, num_bytes = Finished(), 0
    groups = read_groups(source)
    for number, text in _whole_lines(partial):
        result = _parse(partial, number, text)
        if fault := _fault(result, next(groups, None), finished.weight_digest):
            raise InputError(f"{partial}:{number}: {fault}; this cannot be resumed, start without --resume")
        finished, num_bytes = _with(finished, result), num_bytes + len(text)
    os.truncate(partial, num_bytes)
    return finished


def _with(finished: Finished, result: ScoredGroup | RefusedGroup) -> Finished:
    if isinstance(result, RefusedGroup):
        return Finished(finished.num_groups + 1, finished.num_refused + 1, finished.weight_digest)
    return Finished(finished.num_groups + 1, finished.num_refused, result.weight_digest)


def _whole_lines(partial: Path) -> Iterator[tuple[int, bytes]]:
    with partial.open("rb") as results:
        yield from ((number, text) for number, text in enumerate(results, start=1) if text.endswith(b"\n"))


def _fault(result: ScoredGroup | RefusedGroup, line: Line | None, weight_digest: str | None) -> str | None:
    """Return why a result cannot belong to this run; None if it can."""
    if line is None:
        return "there are more results than groups"
    group = line.group
    if result.id != group.id:
        return f"the result has the id {result.id!r}, the group on line {line.number} has {group.id!r}"
    if isinstance(result, RefusedGroup):
        return None
    if len(result.completions) != len(group.completions):
        wanted = f"the group on line {line.number} has {len(group.completions)}"
        return f"the result has {len(result.completions)} completions, {wanted}"
    if weight_digest not in (None, result.weight_digest):
        return f"the result comes from the weights {result.weight_digest}, the results before it from {weight_digest}"
    return None


def _parse(partial: Path, number: int, text: bytes) -> ScoredGroup | RefusedGroup:
    try:
        return _result.validate_json(text)
    except pydantic.ValidationError as error:
        raise InputError(f"{partial}:{number}: this line is not a result; start without --resume") from error
