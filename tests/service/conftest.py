"""What tests of all rooms of the service use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vigor_service.observability.logs import TextFormatter


@pytest.fixture
def text_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """A ``caplog`` whose ``text`` has the lines as the service writes them, with their fields."""
    usual = caplog.handler.formatter
    caplog.handler.setFormatter(TextFormatter())
    yield caplog
    caplog.handler.setFormatter(usual)
