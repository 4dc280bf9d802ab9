"""The life of the service: loading, serving, draining. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vigor_service.errors import (
    DeadlineExceededError,
    DrainingError,
    LoadingError,
    NoEngineError,
    StartupError,
    UnhealthyError,
)
from vigor_service.observability.loading_progress import LoadingPhase, LoadingProgress
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.engine_pool import EnginePool, LocalEngine
from vigor_service.scoring.text_tokens import Tokenizer
from vigor_service.scoring.tokenization import Encoder
from vigor_service.serving import Serving, build_serving
from vigor_service.settings import Settings
from vigor_service.threads.file_threads import FileThreads
from vigor_service.threads.preparation import Preparation
from vigor_service.threads.watchdog import Watchdog
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.storage.staging import StagingArea, default_staging_root
from vigor_service.weights.storage.state import StateDirectory

if TYPE_CHECKING:
    from vigor_service.engine.interface import EngineInfo, HeldWeights, Scorer
    from vigor_service.weights.updates.restore import Replayed
    from vigor_service.weights.version import Weights

_logger = logging.getLogger(__name__)

LOADING_RETRY_SECONDS = 2.0
DRAINING_RETRY_SECONDS = 5.0
NO_ENGINE_RETRY_SECONDS = 5.0


class Loaded(Protocol):
    """Result of loading: the weights by name, what is measured of them, the tokenizer if any, and the engines.

    ``generation_ends`` are the token ids that end a completion.
    """

    @property
    def held(self) -> HeldWeights: ...
    @property
    def info(self) -> EngineInfo: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def generation_ends(self) -> tuple[int, ...]: ...

    def engines(self, compute: WorkerThread, weights: Weights, /) -> EnginePool:
        """Return the engines that compute with ``weights``, which describe what ``held`` currently holds."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded in this process, and computed on the compute thread."""

    scorer: Scorer
    tokenizer: Tokenizer | None
    generation_ends: tuple[int, ...] = ()

    @property
    def held(self) -> HeldWeights:
        """The scorer's own weights."""
        return self.scorer

    @property
    def info(self) -> EngineInfo:
        """Description of what the scorer measures."""
        return self.scorer.info

    def engines(self, compute: WorkerThread, weights: Weights) -> EnginePool:
        """Return the scorer as the only engine."""
        return LocalEngine(self.scorer, compute, weights)


class Runtime:
    """All parts of one service, from loading to shutdown.

    ``load_model`` runs on the compute thread. If it raises, ``load_error`` is set and ``on_load_failure`` is called.
    ``progress`` says which phase of loading the service is in; ``load_model`` may begin phases of its own.
    """

    def __init__(
        self,
        settings: Settings,
        load_model: Callable[[], Loaded],
        *,
        on_load_failure: Callable[[], None],
        metrics: Metrics,
        progress: LoadingProgress,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self._progress = progress
        self.preparation = Preparation(seconds=settings.preparation_seconds)
        self.load_error: BaseException | None = None
        self._compute = WorkerThread("compute")
        self._watchdog = Watchdog(self._compute, limit_seconds=settings.watchdog_seconds)
        self._load_model = load_model
        self._on_load_failure = on_load_failure
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading: asyncio.Task[Serving] | None = None
        self._files = FileThreads()
        self._staging: StagingArea | None = None
        self._state: StateDirectory | None = None
        self._serving: Serving | None = None
        self._engines: EnginePool | None = None
        self._is_draining = False

    @property
    def serving(self) -> Serving:
        """The parts that serve.

        Raises:
            LoadingError, DrainingError: the model is not loaded yet, or the service shuts down.
        """
        if self._is_draining:
            raise DrainingError("the service is shutting down", retry_after_seconds=DRAINING_RETRY_SECONDS)
        if self._serving is None:
            raise LoadingError(
                self._progress.describe(),
                retry_after_seconds=LOADING_RETRY_SECONDS,
                phase=self._progress.phase.value,
            )
        return self._serving

    @property
    def is_idle(self) -> bool:
        """Whether no thread of the service has work that cannot be interrupted."""
        return self._compute.is_idle and self.preparation.is_idle and self._files.is_idle

    def require_alive(self) -> None:
        """Raise UnhealthyError unless the service can compute, or will be able to once it is loaded."""
        if self.load_error is not None or (self._serving is not None and not self._serving.scheduler.is_alive):
            raise UnhealthyError("the service can no longer compute: restart it")
        if self._serving is not None:  # before that the thread loads, without a time limit
            self._watchdog.require_progress()

    def require_ready(self) -> None:
        """Raise unless a score request would be accepted, and computed, now."""
        self.serving.current_weights.require_ready()
        if self.serving.engines.num_engines == 0:
            raise NoEngineError(
                "all engines have ended, and no replacement is running yet; retry later",
                retry_after_seconds=NO_ENGINE_RETRY_SECONDS,
            )

    def start(self) -> None:
        """Begin to load the model."""
        self._loop = asyncio.get_running_loop()
        self._loading = asyncio.create_task(self._load())
        self._loading.add_done_callback(self._finish_loading)

    def drain(self) -> None:
        """Refuse new requests, and fail what waits for weights or samples; other admitted requests finish."""
        self._is_draining = True
        if self._serving is not None:
            self._serving.current_weights.drain()
            self._serving.group_assembly.drain()

    def drain_from_signal(self) -> None:
        """Schedule ``drain`` on the event loop. May be called from a signal handler, which interrupts the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.drain)

    async def stop(self) -> None:
        """Stop all parts at once, without waiting for work in progress."""
        self.drain()
        if self._loading is not None:
            self._loading.cancel()
        if self._serving is not None:
            self._serving.group_assembly.close()
            self._serving.scheduler.stop()
            self._serving.updates.close()
        if self._engines is not None:
            await self._engines.close()
        self._compute.close()
        self.preparation.close()
        if self._staging is not None:
            await self._files.run("removal", self._staging.close)
        if self._state is not None:
            self._state.close()
        self._files.close()

    async def _load(self) -> Serving:
        staging = await self._open_directories()
        self._progress.begin(LoadingPhase.IMPORTING_LIBRARIES)
        model, replayed = await self._compute.run(_load_and_replay, self._load_model, self._state, self._progress)
        self._engines = model.engines(self._compute, replayed.weights)
        self.metrics.watch_engines(self._engines.statuses)
        await self._engines.start()
        budget = self.settings.max_batch_tokens
        if budget == "auto":
            self._progress.begin(LoadingPhase.MEASURING_BATCH_SIZE)
            budget = await self._engines.measure_batch_tokens()
        encoder = await asyncio.to_thread(self._encoder, model)  # it tries the chat template, without a time limit
        return build_serving(
            self._engines,
            model.held,
            model.info,
            encoder,
            replayed,
            settings=self.settings,
            max_batch_tokens=budget,
            preparation=self.preparation,
            files=self._files,
            staging=staging,
            state=self._state,
            metrics=self.metrics,
        )

    async def _open_directories(self) -> StagingArea:
        try:
            if self.settings.state_dir is not None:
                self._state = await self._files.run("state", StateDirectory, self.settings.state_dir)
            self._staging = await self._files.run("state", StagingArea, self._staging_root(), self._files)
        except DeadlineExceededError as error:
            raise StartupError(error.detail) from error
        return self._staging

    def _encoder(self, model: Loaded) -> Encoder:
        return Encoder(
            model.tokenizer,
            model.info.vocab_size,
            model.info.max_sequence_tokens,
            generation_ends=model.generation_ends,
            max_request_tokens=self.settings.max_request_tokens,
            media_token_ids=model.info.media_token_ids,
        )

    def _staging_root(self) -> Path:
        if self._state is not None:
            return self._state.staging_root
        return self.settings.staging_dir or default_staging_root()

    def _finish_loading(self, loading: asyncio.Task[Serving]) -> None:
        if loading.cancelled():
            return
        self.load_error = loading.exception()
        if self.load_error is not None:
            self._on_load_failure()
            return
        self._serving = loading.result()
        self._serving.scheduler.start()
        info, weights = self._serving.info, self._serving.current_weights.weights
        self.metrics.describe_build(model=info.model, dtype=info.dtype, device=info.device)
        self.metrics.watch_memory(_memory_reader(info.device))
        _logger.info(
            "ready",
            extra={
                "model": info.model,
                "device": info.device,
                "dtype": info.dtype,
                "digest": weights.digest,
                "loading_seconds": round(self._progress.total_seconds, 1),
            },
        )


def _memory_reader(device: str) -> Callable[[], Mapping[str, int]]:
    # These modules import torch, as below.
    import torch

    from vigor_service.engine.interface import device_memory_bytes

    return partial(device_memory_bytes, torch.device(device))


def _load_and_replay(
    load_model: Callable[[], Loaded], state: StateDirectory | None, progress: LoadingProgress
) -> tuple[Loaded, Replayed]:
    model = load_model()
    # These modules import torch. They are imported here, so that the socket opens before torch is loaded.
    from vigor_service.weights.updates.restore import Replayed, replay
    from vigor_service.weights.verification.fingerprint import initial_weights

    progress.begin(LoadingPhase.HASHING_WEIGHTS)
    weights = initial_weights(model.held)
    if state is None:
        return model, Replayed(weights)
    progress.begin(LoadingPhase.RESTORING_WEIGHTS)
    return model, replay(state, model.held, weights)
