"""The real `vigor-service`, but it kills itself at a stage of a commit: `python -m tests.support.killed_service STAGE`.

``verifying``: when a delta is compared with the model; ``storing``: before what was verified is on the disk for good;
``stored``: when nothing of it is in the model yet; ``applying``: when the first tensor is in the model, others are not.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import vigor_service.__main__ as program
from vigor_service.engine.engine import Engine
from vigor_service.engine.interface import Write
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import LoadedModel
from vigor_service.server import serve
from vigor_service.settings import Settings

STAGES = ("verifying", "storing", "stored", "applying")


class KilledEngine:
    """An engine that serves until a commit reaches the stage."""

    def __init__(self, engine: Engine, stage: str) -> None:
        self._engine = engine
        self._stage = stage
        self._is_published = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def measure_batch_tokens(self) -> int:
        self._is_published = True  # what was loaded and replayed is complete now
        return self._engine.measure_batch_tokens()

    def tensors(self) -> object:
        if self._is_published and self._stage == "verifying":
            _die()
        return self._engine.tensors()

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        self._engine.load(self._until_killed(writes) if self._is_published else writes)

    def _until_killed(self, writes: Iterable[tuple[str, Write]]) -> Iterator[tuple[str, Write]]:
        if self._stage == "stored":
            _die()
        for write in writes:
            yield write
            if self._stage == "applying":
                _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _load(settings: Settings, stage: str) -> LoadedModel:
    model = cast("LoadedModel", program._load_model(settings, LoadingProgress()))
    return LoadedModel(KilledEngine(cast("Engine", model.scorer), stage), model.tokenizer)  # pyright: ignore[reportArgumentType] - by __getattr__


def _die_before_rename(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and Path(str(arguments[0])).name == "incoming":
        _die()


if __name__ == "__main__":
    stage = sys.argv.pop(1)
    if stage == "storing":
        sys.addaudithook(_die_before_rename)
    settings = program._read_settings()
    configure_logging("INFO", "text")
    serve(settings, partial(_load, settings, stage))
