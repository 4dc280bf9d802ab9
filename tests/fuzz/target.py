"""The service that is asked whatever can be asked: a tiny model behind all that can be reached over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.odd_files import plant
from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint

KEY = "key-of-the-publisher"  # opens all routes
GROUP_TIMEOUT_SECONDS = 1  # a sample waits for others of its group, which seldom come here
UPDATE_TIMEOUT_SECONDS = 5


def everything(directory: Path) -> list[str]:
    """Return the flags of a service with keys, a state directory and a weights root, which connects to nothing."""
    (directory / "root").mkdir()
    for name, key in {"publish": KEY, "score": "key-of-the-scorers"}.items():
        (directory / name).write_text(key)
    given = {
        "model": save_tiny_checkpoint(directory / "model"),
        "device": "cpu",
        "state-dir": directory / "state",
        "weights-root": directory / "root",
        "group-timeout-seconds": GROUP_TIMEOUT_SECONDS,
        "publish-key-file": directory / "publish",
        "score-key-file": directory / "score",
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@contextmanager
def fuzzed_service(directory: Path) -> Iterator[ServiceProcess]:
    """Start it with odd files under its weights root."""
    flags = [*everything(directory), "--update-timeout-seconds", str(UPDATE_TIMEOUT_SECONDS)]
    plant(directory / "root")
    with service_process(directory, *flags) as service:
        service.http.headers["Authorization"] = f"Bearer {KEY}"
        yield service
