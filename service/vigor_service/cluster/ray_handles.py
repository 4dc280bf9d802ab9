"""Engines as Ray actors, and chunks of weights in Ray's object store."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vigor_service.cluster.actor import EngineActor
from vigor_service.cluster.packing import Chunk
from vigor_service.scheduling.engine_pool import EngineLostError

if TYPE_CHECKING:
    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo, Scorer
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

R = TypeVar("R")

# Ray reads them when it is imported. A cluster of its own is for this machine alone: its servers listen on the loopback
# address, which on Linux is what this setting does, whatever its name says.
_OF_A_LOCAL_CLUSTER = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it would take SIGTERM from the service, which drains
}

_GROUPS = {"life": 1, "weights": 1}
"""Threads of an engine's process beside the one that computes."""


@dataclass(frozen=True, slots=True)
class RayChunk:
    """A chunk in the object store. Ray resolves it only as an argument of its own."""

    reference: Any


class RayCluster:
    """A connection to Ray: to the cluster at ``address``, or to one of its own, which ends with it."""

    def __init__(self, address: str | None) -> None:
        os.environ.update(_ALWAYS | ({} if address else _OF_A_LOCAL_CLUSTER))
        self._ray: Any = import_module("ray")  # which has no types
        shared = {"log_to_driver": False, "configure_logging": False}
        self._ray.init(address=address, **shared) if address else self._ray.init(include_dashboard=False, **shared)

    @property
    def has_gpus(self) -> bool:
        """Whether a node of it has a GPU."""
        return self._ray.cluster_resources().get("GPU", 0) > 0

    def spawn(self, load: Callable[[], Scorer], *, num_gpus: float) -> RayHandle:
        """Start an engine where there is room for it."""
        actor = self._ray.remote(num_cpus=1, num_gpus=num_gpus, concurrency_groups=_GROUPS, max_restarts=0)(EngineActor)
        return RayHandle(self._ray, actor.remote(load))

    def put(self, chunk: Chunk) -> RayChunk:
        """Store a chunk: each machine has it once."""
        return RayChunk(self._ray.put(chunk))

    def close(self) -> None:
        """Leave the cluster, or end it."""
        self._ray.shutdown()


class RayHandle:
    """Implements `EngineHandle`."""

    def __init__(self, ray: Any, actor: Any) -> None:  # noqa: ANN401 - Ray has no types
        self._ray = ray
        self._actor = actor

    async def live(self) -> None:
        """Wait until the process ends."""
        await self._answer(self._actor.live.options(concurrency_group="life").remote())

    async def describe(self) -> EngineInfo:
        """Return what it measures, once it has loaded."""
        return await self._answer(self._actor.describe.remote())

    async def digest(self) -> str:
        """Return the digest of the weights that it holds."""
        return await self._answer(self._actor.digest.remote())

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return await self._answer(self._actor.measure_batch_tokens.remote())

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch."""
        return await self._answer(self._actor.score.remote(sequences, parts))

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Say where a gradient norm comes from."""
        return await self._answer(self._actor.attribute.remote(sequence))

    async def stage(self, version: int, chunks: Sequence[RayChunk]) -> None:
        """Give it what its next weights are made of."""
        staging = self._actor.stage.options(concurrency_group="weights")
        await self._answer(staging.remote(version, *(chunk.reference for chunk in chunks)))

    async def switch(self, version: int) -> None:
        """Have it take what was staged."""
        await self._answer(self._actor.switch.remote(version))

    def kill(self) -> None:
        """End the process."""
        self._ray.kill(self._actor, no_restart=True)

    async def _answer(self, reference: Awaitable[R]) -> R:
        errors = self._ray.exceptions
        try:
            return await reference
        except errors.RayTaskError as error:  # the engine's own
            raise cast("Exception", error.cause) from None
        except errors.RayError as error:  # of the process, its machine, or the way there
            raise EngineLostError(str(error).split("\n", maxsplit=1)[0]) from error
