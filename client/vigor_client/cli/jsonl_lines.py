"""The lines of input and output: each input line holds a group, each output line its scores or why it was not scored.

Knows nothing about requests or the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pydantic
from pydantic import Field

from vigor_client.cli.jsonl_input import JsonlInput
from vigor_client.errors import InputError
from vigor_client.schemas.common import Checksum, WeightVersion, WireModel, half_character_in_json
from vigor_client.schemas.faults import fault_sentence, fault_sentences
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.scoring import Group, GroupScore

_MAX_LISTED_LINES = 10


@dataclass(frozen=True, slots=True)
class Line:
    """A group, the number of its line, counted from 1, and the bytes of that line."""

    number: int
    group: Group
    num_bytes: int


class ScoredGroup(GroupScore):
    """A line of the output: a group's scores, and the weights they come from."""

    weight_version: WeightVersion
    weight_digest: Checksum


class Refusal(WireModel):
    """Why the service did not score a group: ``detail`` says it in a line, ``errors`` has the places in the group."""

    status: int
    code: str
    detail: str
    errors: list[FieldError] = Field(default_factory=list[FieldError])


class RefusedGroup(WireModel):
    """A line of the output: a group that was not scored."""

    id: str | None = None
    error: Refusal


def check_lines(source: JsonlInput) -> int:
    """Read the whole input once, before anything is scored, and return its number of groups, at least 1.

    Raises:
        InputError: the input is empty, or some lines are not groups; the first of these are named.
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
        raise InputError(f"{source.name}: the file has no groups; nothing was scored")
    return num_groups


def read_groups(source: JsonlInput) -> Iterator[Line]:
    """Yield the groups of the input, one at a time.

    Raises:
        InputError: a line is not a group.
    """
    return (_parse(source, number, text) for number, text in source.lines())


def _parse(source: JsonlInput, number: int, text: bytes) -> Line:
    try:
        return Line(number, Group.model_validate_json(text), len(text))
    except pydantic.ValidationError as error:
        raise InputError(f"{source.name}:{number}: {_fault_of(text) or _said(error)}") from error


def _fault_of(text: bytes) -> str | None:
    """Return what is wrong with the characters, which the parser would only call invalid JSON; None if nothing is."""
    if found := half_character_in_json(text):
        place, said = found
        return fault_sentence(place, said)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the line (0x{text[error.start]:02x}) is not UTF-8: save the file as UTF-8"
    return None


def _said(error: pydantic.ValidationError) -> str:
    return "; ".join(fault_sentences(error, Group))
