"""Score a JSONL file: one group per line in, one line of results per group out, in the same order.

Only a bounded number of groups is in memory at a time. Knows nothing about the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pydantic

from vigor_client.errors import InputError, ProblemError, VigorError
from vigor_client.schemas import Group, ScoreResponse

_MAX_LISTED_LINES = 10


@dataclass(frozen=True, slots=True)
class Line:
    """A group and the line it stands on, counted from 1."""

    number: int
    group: Group


def check_lines(path: Path) -> int:
    """Read the whole file once, before anything is scored, and return how many groups it has.

    Raises:
        InputError: some lines are not groups; the first of them are named.
    """
    faults: list[str] = []
    num_groups = 0
    for number, text in _lines(path):
        try:
            _parse(path, number, text)
            num_groups += 1
        except InputError as error:
            faults.append(str(error))
        if len(faults) == _MAX_LISTED_LINES:
            break
    if faults:
        raise InputError("\n  ".join(faults))
    return num_groups


def read_groups(path: Path) -> Iterator[Line]:
    """Yield the groups of a file, one at a time.

    Raises:
        InputError: a line is not a group.
    """
    return (_parse(path, number, text) for number, text in _lines(path))


def score_lines(
    path: Path, score: Callable[[list[Group]], ScoreResponse], *, groups_per_request: int, num_finished: int = 0
) -> Iterator[str]:
    """Yield one JSON line of results per group, from the group after the first ``num_finished`` on.

    Raises:
        InputError: a line is not a group, or the service refused one.
    """
    lines = islice(read_groups(path), num_finished, None)
    while batch := list(islice(lines, groups_per_request)):
        try:
            response = score([line.group for line in batch])
        except ProblemError as error:
            raise _located(path, batch, error) from error
        weights = {"weight_version": response.weight_version, "weight_digest": response.weight_digest}
        for group in response.groups:
            yield json.dumps({**group.model_dump(mode="json"), **weights}, ensure_ascii=False)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((number, text) for number, text in enumerate(file, start=1) if text.strip())


def _parse(path: Path, number: int, text: bytes) -> Line:
    try:
        return Line(number, Group.model_validate_json(text))
    except pydantic.ValidationError as error:
        places = [
            ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise InputError(f"{path}:{number}: {'; '.join(places)}") from error


def _located(path: Path, batch: list[Line], error: ProblemError) -> VigorError:
    """Say which lines a refusal is about, where it is about single groups."""
    places: list[str] = []
    for fault in error.errors:
        match fault.loc:
            case ["groups", int(index), *inner] if index < len(batch):
                places.append(f"{path}:{batch[index].number}: {'.'.join(map(str, inner))}: {fault.msg}")
            case _:
                return error
    return InputError("\n  ".join(places)) if places else error
