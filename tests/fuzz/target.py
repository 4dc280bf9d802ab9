"""The service that is fuzzed: a tiny model behind all that can be reached over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.odd_files import plant
from tests.service_process import ServiceProcess, service_process
from tests.tiny_models import save_tiny_checkpoint

KEY = "key-of-the-publisher"
GROUP_TIMEOUT_SECONDS = 1  # a sample waits for others of its group, which seldom come here
UPDATE_TIMEOUT_SECONDS = 5


@contextmanager
def fuzzed_service(directory: Path) -> Iterator[ServiceProcess]:
    """Start it with odd files under its weights root, and with keys."""
    plant(directory / "root")
    (directory / "publish").write_text(KEY)
    (directory / "score").write_text("key-of-the-scorers")
    given = {
        "model": save_tiny_checkpoint(directory / "model"),
        "device": "cpu",
        "state-dir": directory / "state",
        "weights-root": directory / "root",
        "group-timeout-seconds": GROUP_TIMEOUT_SECONDS,
        "update-timeout-seconds": UPDATE_TIMEOUT_SECONDS,
        "publish-key-file": directory / "publish",
        "score-key-file": directory / "score",
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    with service_process(directory, *flags) as service:
        service.http.headers["Authorization"] = f"Bearer {KEY}"
        yield service
