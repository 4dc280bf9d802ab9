"""URL and key of the service, for trainers that take them from environment variables."""

from __future__ import annotations

import os


def service_of_environment(*, cure: str, url: str | None = None) -> tuple[str, str | None]:
    """Return the service's URL (``url``, else ``VIGOR_URL``) and its key (``VIGOR_API_KEY``, if it is set).

    Raises:
        ValueError: there is no URL; ``cure`` is the part of the message that says what to do.
    """
    found = url or os.environ.get("VIGOR_URL")
    if not found:
        raise ValueError(f"the URL of the scoring service is not known. {cure}")
    return found, os.environ.get("VIGOR_API_KEY") or None
