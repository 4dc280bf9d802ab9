"""The check that every adapter makes before it asks the service: all completions of a group answer one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vigor_client.errors import VigorError


class InvalidGroupError(VigorError, ValueError):
    """The completions are not whole groups of one prompt each. Nothing was sent; a part of a group is never ranked."""


def shared_prompt(prompts: Iterable[Sequence[int]], group: str) -> list[int]:
    """Return the prompt that every completion of a group answers. ``group`` names it in the error.

    Raises:
        InvalidGroupError: the completions answer different prompts.
    """
    first, *others = map(list, prompts)
    if any(other != first for other in others):
        raise InvalidGroupError(f"{group} mixes completions of different prompts: nothing was sent")
    return first
