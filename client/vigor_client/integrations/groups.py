"""What every adapter checks of a group before the service is asked: its completions answer one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vigor_client.errors import VigorError


class InvalidGroupError(VigorError, ValueError):
    """Completions that are not whole groups of one prompt each. Nothing was sent; a part is never ranked."""


def shared_prompt(prompts: Iterable[Sequence[int]], group: str) -> list[int]:
    """Return the prompt that every completion of a group answers. ``group`` names it in the error.

    Raises:
        InvalidGroupError: the completions answer different prompts.
    """
    first, *others = map(list, prompts)
    if any(other != first for other in others):
        raise InvalidGroupError(f"{group} mixes completions of different prompts: nothing was sent")
    return first
