"""Splits many groups into chunks, each small enough to be one request to the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vigor_client.errors import PayloadTooLargeError, UnexpectedAnswerError, VigorError
from vigor_client.schemas.scoring import MAX_COMPLETIONS, MAX_GROUPS, Group, GroupScore

MAX_REQUEST_BYTES = 2**23
"""Maximum size of the JSON of a request with more than one group, in bytes: half of the service's default limit."""

_TOO_LARGE = 413


def chunk_groups(
    groups: Iterable[Group], *, max_bytes: int = MAX_REQUEST_BYTES, max_groups: int = MAX_GROUPS
) -> list[list[Group]]:
    """Return the groups in chunks, whole and in order; a group of more than ``max_bytes`` is a chunk of its own."""
    chunks: list[list[Group]] = []
    byte_room = completion_room = 0
    for group in groups:
        num_bytes, num_completions = len(group.model_dump_json(exclude_none=True).encode()), len(group.completions)
        fits = num_bytes <= byte_room and num_completions <= completion_room
        if not chunks or not fits or len(chunks[-1]) == max_groups:
            chunks.append([])
            byte_room, completion_room = max_bytes, MAX_COMPLETIONS
        chunks[-1].append(group)
        byte_room -= num_bytes
        completion_room -= num_completions
    return chunks


def score_in_chunks(
    groups: Iterable[Group], score: Callable[[list[Group]], list[GroupScore]], *, max_groups: int = MAX_GROUPS
) -> list[GroupScore]:
    """Return the scores of all groups, in order. A chunk that is too large for one request is halved.

    Raises:
        PayloadTooLargeError, UnexpectedAnswerError: a single group is too large for the service or for a proxy in front
            of it.
        Any other exception that ``score`` raises.
    """
    pending = chunk_groups(groups, max_groups=max_groups)[::-1]
    scores: list[GroupScore] = []
    while pending:
        chunk = pending.pop()
        try:
            scores += score(chunk)
        except (PayloadTooLargeError, UnexpectedAnswerError) as error:
            if len(chunk) == 1 or not is_too_large(error):
                raise
            pending += halves(chunk)[::-1]
    return scores


def is_too_large(error: VigorError) -> bool:
    """Return whether a request was too large for the service or a proxy in front of it: a smaller one may succeed."""
    return isinstance(error, PayloadTooLargeError) or (
        isinstance(error, UnexpectedAnswerError) and error.status == _TOO_LARGE
    )


def halves(chunk: list[Group]) -> list[list[Group]]:
    """Return the two halves of a chunk of at least two groups."""
    middle = len(chunk) // 2
    return [chunk[:middle], chunk[middle:]]
