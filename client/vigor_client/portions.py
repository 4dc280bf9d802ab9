"""Many groups as requests that the service takes."""

from __future__ import annotations

from collections.abc import Iterable

from vigor_client.schemas import MAX_GROUPS, Group

MAX_REQUEST_TOKENS = 1_000_000  # about 7 MB of JSON; the service takes 16 MB unless told otherwise


def in_portions(groups: Iterable[Group], *, max_tokens: int = MAX_REQUEST_TOKENS) -> list[list[Group]]:
    """Cut groups into requests, groups whole and in order; a group of more than ``max_tokens`` goes alone."""
    portions: list[list[Group]] = []
    room = 0
    for group in groups:
        size = _num_tokens(group)
        if size > room or len(portions[-1]) == MAX_GROUPS:
            portions.append([])
            room = max_tokens
        portions[-1].append(group)
        room -= size
    return portions


def _num_tokens(group: Group) -> int:
    """Numbers that the group puts on the wire."""
    masks = sum(len(completion.mask or []) for completion in group.completions)
    return len(group.prompt_ids or []) + masks + sum(len(completion.ids or []) for completion in group.completions)
