"""How log lines look: text, or one JSON object per line. What they say is written where it happens."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""The request that runs in this context."""

WEIGHT_VERSION = "weight_version"
"""Name of a record's own field with the version that answered, a member of the line in JSON."""

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One line per record: an object with time, level, logger and message, and what there is of others.

    These are request_id, weight_version and exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := current_request_id.get()) is not None:
            line["request_id"] = request_id
        if WEIGHT_VERSION in record.__dict__:
            line[WEIGHT_VERSION] = record.__dict__[WEIGHT_VERSION]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send what is logged, and warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(form == "json")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its news is in our own lines


def join_transformers() -> None:
    """Send what transformers logs the same way, and keep its progress bars out of the lines. Imports transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
