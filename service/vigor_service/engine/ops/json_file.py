"""A JSON file of the cache directory, which other processes may read and replace at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import NamedTemporaryFile


def replace_json(path: Path, content: object) -> None:
    """Replace a file, and make its directory: a reader sees either the old content or the new content.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
        json.dump(content, file)
    Path(file.name).replace(path)
