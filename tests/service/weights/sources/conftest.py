"""A service with a root that holds weights, and versions published below it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_service import LiveService, live_service
from tests.support.published import Published


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def service(tmp_path: Path, root: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "staging", weights_root=root) as running:
        yield running


@pytest.fixture
def published(root: Path, service: LiveService) -> Published:
    return Published(root / "run", service.scorer.parameters)
