"""The form of log lines: text, or one JSON object per line. What a line says is decided where it is logged.

A line is an event and its fields: ``logger.info("request", extra={"status": 200})``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Id of the request that runs in this context. Every line that is logged in the context has it as ``request_id``."""

_NOT_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "_ray_timestamp_ns"}
_UNQUOTED = re.compile(r"""[^\s"'\\]+""")


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields as ``key=value``, on one line unless there is a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without the traceback."""
        fields = [f"{name}={_quoted(str(value))}" for name, value in _fields(record).items()]
        return " ".join([super().formatMessage(record), *fields])


class JsonFormatter(logging.Formatter):
    """One object per record: time, level, logger and message, then the fields, then ``exception`` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = line | _fields(record) | line  # these four keep their place and their values
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send all log lines to standard error. In the form json, Python's warnings are logged too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(form == "json")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the service logs starts and requests itself


def join_transformers() -> None:
    """Send the log lines of transformers the same way, and disable its progress bars. Imports transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields given as ``extra``, and the id of the request in whose context the record is formatted."""
    fields = {name: value for name, value in vars(record).items() if name not in _NOT_FIELDS}
    if (request_id := current_request_id.get()) is not None:
        fields.setdefault("request_id", request_id)
    return fields


def _quoted(text: str) -> str:
    """Return the text unchanged, or quoted and escaped if it could be read as more than one value or line."""
    return text if _UNQUOTED.fullmatch(text) and text.isprintable() else repr(text)
