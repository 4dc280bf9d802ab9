"""Suggestions for an unknown name: the known name that is spelled most like it.

It serves fields of requests, options of all three commands, and environment variables alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str], *, prefix: str = "") -> str | None:
    """Return the known name that is spelled most like ``name``, or None if none is close.

    Names are compared without the ``prefix`` that all of them have.
    """
    matches = get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return prefix + matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return ``; did you mean NAME?`` with the nearest known name, or an empty text if none is close."""
    nearest = nearest_name(name, known, prefix=prefix)
    return f"; did you mean {nearest}?" if nearest else ""
