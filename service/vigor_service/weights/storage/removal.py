"""Removes directories, files and links."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

_logger = logging.getLogger(__name__)


def remove(path: Path) -> None:
    """Remove a directory with its contents, or a file or link (not its target). Errors are logged.

    A file that a process has open on a network file system cannot be removed until it is closed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # removed by another process or thread meanwhile
    except OSError as error:
        _logger.warning("not_removed", extra={"path": path, "reason": error.strerror})
