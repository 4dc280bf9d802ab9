"""Many groups as requests that the service takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vigor_client.errors import PayloadTooLargeError, UnexpectedAnswerError, VigorError
from vigor_client.schemas.scoring import MAX_COMPLETIONS, MAX_GROUPS, Group, GroupScore

MAX_REQUEST_BYTES = 2**23
"""Bytes of the JSON of a request with more than one group: half of what a service takes unless told otherwise."""

_TOO_LARGE = 413


def in_portions(groups: Iterable[Group], *, max_bytes: int = MAX_REQUEST_BYTES) -> list[list[Group]]:
    """Cut groups into requests, groups whole and in order; a group of more than ``max_bytes`` goes alone."""
    portions: list[list[Group]] = []
    byte_room = completion_room = 0
    for group in groups:
        num_bytes, num_completions = len(group.model_dump_json(exclude_none=True).encode()), len(group.completions)
        fits = num_bytes <= byte_room and num_completions <= completion_room
        if not portions or not fits or len(portions[-1]) == MAX_GROUPS:
            portions.append([])
            byte_room, completion_room = max_bytes, MAX_COMPLETIONS
        portions[-1].append(group)
        byte_room -= num_bytes
        completion_room -= num_completions
    return portions


def score_portions(groups: Iterable[Group], score: Callable[[list[Group]], list[GroupScore]]) -> list[GroupScore]:
    """Return the scores of all groups, in order, from requests that are halved where one is found too large.

    Raises:
        PayloadTooLargeError, UnexpectedAnswerError: a single group is too large for the service, or a proxy before it.
        whatever else ``score`` raises.
    """
    pending = in_portions(groups)[::-1]
    scores: list[GroupScore] = []
    while pending:
        portion = pending.pop()
        try:
            scores += score(portion)
        except (PayloadTooLargeError, UnexpectedAnswerError) as error:
            if len(portion) == 1 or not is_too_large(error):
                raise
            pending += halves(portion)[::-1]
    return scores


def is_too_large(error: VigorError) -> bool:
    """Whether a request had more bytes than the service takes, or a proxy before it: a smaller one may do."""
    return isinstance(error, PayloadTooLargeError) or (
        isinstance(error, UnexpectedAnswerError) and error.status == _TOO_LARGE
    )


def halves(portion: list[Group]) -> list[list[Group]]:
    """Cut a request of at least two groups."""
    middle = len(portion) // 2
    return [portion[:middle], portion[middle:]]
