"""Score JSON lines: one group per line in, one line of results per group out, in the same order.

Only a bounded number of groups is in memory at a time. Knows nothing about the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import pydantic

from vigor_client.errors import InputError, ProblemError, VigorError
from vigor_client.jsonl_input import JsonlInput
from vigor_client.schemas import Group, ScoreResponse
from vigor_client.wire_types import half_character_in_json

_MAX_LISTED_LINES = 10


@dataclass(frozen=True, slots=True)
class Line:
    """A group and the line it stands on, counted from 1."""

    number: int
    group: Group


def check_lines(source: JsonlInput) -> int:
    """Read the whole input once, before anything is scored, and return how many groups it has: at least one.

    Raises:
        InputError: it is empty, or some lines are not groups; the first of them are named.
    """
    faults: list[str] = []
    num_groups = 0
    for number, text in source.lines():
        try:
            _parse(source, number, text)
            num_groups += 1
        except InputError as error:
            faults.append(str(error))
        if len(faults) == _MAX_LISTED_LINES:
            break
    if faults:
        raise InputError("\n  ".join(faults))
    if not num_groups:
        raise InputError(f"{source.name}: no group in it; nothing was scored")
    return num_groups


def read_groups(source: JsonlInput) -> Iterator[Line]:
    """Yield the groups of the input, one at a time.

    Raises:
        InputError: a line is not a group.
    """
    return (_parse(source, number, text) for number, text in source.lines())


def score_lines(
    source: JsonlInput,
    score: Callable[[list[Group]], ScoreResponse],
    *,
    groups_per_request: int,
    num_groups: int,
    num_finished: int = 0,
) -> Iterator[str]:
    """Yield one JSON line of results per group, from the group after the first ``num_finished`` on.

    Raises:
        InputError: a line is not a group, the service refused one, or there are not the ``num_groups`` of the check.
    """
    lines = islice(read_groups(source), num_finished, None)
    num_read = num_finished
    while batch := list(islice(lines, groups_per_request)):
        try:
            response = score([line.group for line in batch])
        except ProblemError as error:
            raise _located(source, batch, error) from error
        weights = {"weight_version": response.weight_version, "weight_digest": response.weight_digest}
        for group in response.groups:
            yield json.dumps({**group.model_dump(mode="json"), **weights}, ensure_ascii=False)
        num_read += len(batch)
    if num_read != num_groups:
        raise InputError(f"{source.name}: changed while it was scored: {num_read} groups instead of {num_groups}")


def _parse(source: JsonlInput, number: int, text: bytes) -> Line:
    try:
        return Line(number, Group.model_validate_json(text))
    except pydantic.ValidationError as error:
        if found := half_character_in_json(text):
            place, said = found
            raise InputError(f"{source.name}:{number}: {'.'.join(map(str, place))}: {said}") from error
        places = [
            ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise InputError(f"{source.name}:{number}: {'; '.join(places)}") from error


def _located(source: JsonlInput, batch: list[Line], error: ProblemError) -> VigorError:
    """Say which lines a refusal is about, where it is about single groups."""
    places: list[str] = []
    for fault in error.errors:
        match fault.loc:
            case ["groups", int(index), *inner] if index < len(batch):
                places.append(f"{source.name}:{batch[index].number}: {'.'.join(map(str, inner))}: {fault.msg}")
            case _:
                return error
    return InputError("\n  ".join(places)) if places else error
