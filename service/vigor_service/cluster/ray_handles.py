"""Engines as Ray actors, and chunks of weights in Ray's object store."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vigor_service.cluster.actor import EngineActor
from vigor_service.cluster.packing import Chunk
from vigor_service.cluster.shards import ShardedHandle
from vigor_service.errors import StartupError
from vigor_service.scheduling.engine_pool import EngineLostError

if TYPE_CHECKING:
    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo, Scorer
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

R = TypeVar("R")

# Ray reads these variables when it is imported. A cluster that the service starts is for this machine alone, so its
# servers must listen on the loopback address. On Linux the first variable has that effect, despite its name.
_OF_A_LOCAL_CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",  # the processes of one engine exchange weights over it
    "NCCL_SOCKET_IFNAME": "lo",
}
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # Ray's handler would replace the service's, which drains
}

_GROUPS = {"life": 1, "weights": 1}
"""Threads of an engine's process in addition to the one that computes."""


@dataclass(frozen=True, slots=True)
class RayChunk:
    """A chunk in the object store. Ray resolves the reference only if it is passed as a top-level argument."""

    reference: Any


class RayCluster:
    """A connection to Ray: to the cluster at ``address``, or without one to a new cluster, which ends with it.

    Raises:
        StartupError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        address: str | None,
        *,
        load_ray: Callable[[], Any] = lambda: import_module("ray"),
        environment: MutableMapping[str, str] = os.environ,
    ) -> None:
        self._is_local = address is None
        environment.update(_ALWAYS | ({} if address else _OF_A_LOCAL_CLUSTER))
        try:
            self._ray = load_ray()  # Ray has no types
        except ModuleNotFoundError as error:
            raise StartupError(
                "--engines, --shard and --ray-address need Ray: pip install '.[service,ray]' in a checkout of vigor-rl"
            ) from error
        # Without an address Ray would join the last cluster of this machine, even if it has ended: a file names it.
        place = {"address": address} if address else {"address": "local", "include_dashboard": False}
        try:
            self._ray.init(**place, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            where = f"--ray-address {address}: cannot join a Ray cluster there" if address else "cannot start Ray"
            raise StartupError(f"{where}: {str(error).splitlines()[0]}") from error

    @property
    def has_gpus(self) -> bool:
        """Whether a node of the cluster has a GPU."""
        return self._ray.cluster_resources().get("GPU", 0) > 0

    def spawn(self, load: Callable[[], Scorer], *, num_gpus: float) -> RayHandle:
        """Start an engine on any node that has room for it."""
        return RayHandle(self._ray, self._actor(num_gpus).remote(load))

    def spawn_sharded(self, loads: Sequence[Callable[[str], Scorer]], *, num_gpus: float) -> ShardedHandle[RayChunk]:
        """Start the processes of one engine in a placement group: none starts until there is room for all.

        Each ``load`` receives the address at which the processes meet.
        """
        util: Any = import_module("ray.util")
        group = util.placement_group([{"CPU": 1, "GPU": num_gpus}] * len(loads), strategy="PACK")
        places = [self._place(group, index) for index in range(len(loads))]
        meeting = TemporaryDirectory(prefix="vigor-shards-", ignore_cleanup_errors=True)
        address = self._meeting_address(Path(meeting.name), places[0])
        ranks: list[RayHandle] = []
        for load, place in zip(loads, places, strict=True):
            actor = self._actor(num_gpus).options(scheduling_strategy=place)
            ranks.append(RayHandle(self._ray, actor.remote(load, address)))

        def release() -> None:
            util.remove_placement_group(group)
            meeting.cleanup()

        return ShardedHandle(ranks, release)

    def _place(self, group: Any, index: int) -> Any:  # noqa: ANN401 - Ray has no types
        strategies: Any = import_module("ray.util.scheduling_strategies")
        return strategies.PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=index, placement_group_capture_child_tasks=False
        )

    def _meeting_address(self, directory: Path, first: Any) -> Any:  # noqa: ANN401 - an address, or a reference to one
        """Return the URL of a file if all processes are on this machine, so no port opens; else a port of the first."""
        if self._is_local:
            return f"file://{directory / 'store'}"
        return self._ray.remote(num_cpus=0)(free_address).options(scheduling_strategy=first).remote()

    def _actor(self, num_gpus: float) -> Any:  # noqa: ANN401
        return self._ray.remote(num_cpus=1, num_gpus=num_gpus, concurrency_groups=_GROUPS, max_restarts=0)(EngineActor)

    def put(self, chunk: Chunk) -> RayChunk:
        """Store a chunk, and return a reference to it. Each machine holds it at most once."""
        return RayChunk(self._ray.put(chunk))

    def close(self) -> None:
        """Leave the cluster. A cluster that the service started ends."""
        self._ray.shutdown()


def free_address() -> str:
    """Return an address of this machine with a port that is currently free."""
    util: Any = import_module("ray.util")
    host: str = util.get_node_ip_address()
    with socket.create_server((host, 0)) as server:
        return f"tcp://{host}:{server.getsockname()[1]}"


class RayHandle:
    """Implements `EngineHandle`."""

    def __init__(self, ray: Any, actor: Any) -> None:  # noqa: ANN401 - Ray has no types
        self._ray = ray
        self._actor = actor

    async def live(self) -> None:
        """Wait until the process ends."""
        await self._answer(self._actor.live.options(concurrency_group="life").remote())

    async def describe(self) -> EngineInfo:
        """Return what the engine measures, once it has loaded."""
        return await self._answer(self._actor.describe.remote())

    async def digest(self) -> str:
        """Return the digest of the engine's weights."""
        return await self._answer(self._actor.digest.remote())

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return await self._answer(self._actor.measure_batch_tokens.remote())

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch."""
        return await self._answer(self._actor.score.remote(sequences, parts))

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a gradient norm by token and by layer."""
        return await self._answer(self._actor.attribute.remote(sequence))

    async def stage(self, version: int, chunks: Sequence[RayChunk]) -> None:
        """Send the engine the writes that make its next weights."""
        staging = self._actor.stage.options(concurrency_group="weights")
        await self._answer(staging.remote(version, *(chunk.reference for chunk in chunks)))

    async def switch(self, version: int) -> None:
        """Switch the engine to the staged weights."""
        await self._answer(self._actor.switch.remote(version))

    def kill(self) -> None:
        """End the process."""
        self._ray.kill(self._actor, no_restart=True)

    async def _answer(self, reference: Awaitable[R]) -> R:
        errors = self._ray.exceptions
        try:
            return await reference
        except errors.RayTaskError as error:  # raised by the engine
            raise cast("Exception", error.cause) from None
        except errors.RayError as error:  # the process, its machine or the network failed
            raise EngineLostError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return Ray's reason for the end of a process. If loading failed, its exception, which is last in Ray's text."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].rpartition("StartupError: ")[2] if "creation task" in lines[0] else lines[0]
