"""Where the service is, for trainers that are told by their environment."""

from __future__ import annotations

import os


def service_of_environment(*, cure: str, url: str | None = None) -> tuple[str, str | None]:
    """Return the service's URL (``url``, else ``VIGOR_URL``) and its key (``VIGOR_API_KEY``, if it is set).

    Raises:
        ValueError: there is no URL; ``cure`` says what to do.
    """
    found = url or os.environ.get("VIGOR_URL")
    if not found:
        raise ValueError(f"where is the scoring service? {cure}")
    return found, os.environ.get("VIGOR_API_KEY") or None
