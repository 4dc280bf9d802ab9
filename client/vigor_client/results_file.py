"""The file with the results of a run over a JSONL file: partial until it is complete, and able to go on.

What is there already is held to the groups line by line, so that files of any size fit into memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pydantic

from vigor_client.errors import InputError
from vigor_client.jsonl import Line, read_groups
from vigor_client.jsonl_input import JsonlInput
from vigor_client.schemas import Checksum, GroupScore, WeightVersion


@dataclass(frozen=True, slots=True)
class Finished:
    """What is there already: the first ``num_groups`` groups, all scored by the weights of one digest."""

    num_groups: int = 0
    weight_digest: str | None = None


class _Result(GroupScore):
    weight_version: WeightVersion
    weight_digest: Checksum


@contextmanager
def open_results(path: Path | None, *, goes_on: bool) -> Generator[TextIO]:
    """Stdout, or a file that appears under its name when it is complete."""
    if path is None:
        yield sys.stdout
        return
    with partial_of(path).open("a" if goes_on else "w", encoding="utf-8") as file:
        yield file
    partial_of(path).replace(path)


def partial_of(path: Path) -> Path:
    """Where results are until they are complete."""
    return path.with_name(path.name + ".partial")


def resume(path: Path, source: JsonlInput) -> Finished:
    """Return what an interrupted run left of the results for ``source``, after cutting off a last line that is torn.

    Raises:
        InputError: it holds something else, or results of different weights; says which line.
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
        finished, num_bytes = Finished(number, result.weight_digest), num_bytes + len(text)
    os.truncate(partial, num_bytes)
    return finished


def _whole_lines(partial: Path) -> Iterator[tuple[int, bytes]]:
    with partial.open("rb") as results:
        yield from ((number, text) for number, text in enumerate(results, start=1) if text.endswith(b"\n"))


def _fault(result: _Result, line: Line | None, weight_digest: str | None) -> str | None:
    """What shows that a result is not one of this run."""
    if line is None:
        return "there are more results than groups"
    group = line.group
    if result.id != group.id:
        return f"the result has the id {result.id!r}, the group on line {line.number} has {group.id!r}"
    if len(result.completions) != len(group.completions):
        return f"{len(result.completions)} completions, the group on line {line.number} has {len(group.completions)}"
    if weight_digest not in (None, result.weight_digest):
        return f"the weights {result.weight_digest}, the lines before have {weight_digest}"
    return None


def _parse(partial: Path, number: int, text: bytes) -> _Result:
    try:
        return _Result.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise InputError(f"{partial}:{number}: this is no result; start without --resume") from error
