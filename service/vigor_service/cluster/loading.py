"""What a service with several engines loads in its own process: a host copy of the weights, the tokenizer, Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vigor_service.cluster.engines import ClusterEngines, Limits
from vigor_service.cluster.member import EngineHandle
from vigor_service.cluster.ray_handles import RayChunk, RayCluster
from vigor_service.model_loading import (
    EngineSettings,
    Shard,
    load_copy,
    load_scorer,
    load_shard,
    refuse_unshardable,
)

if TYPE_CHECKING:
    from vigor_service.engine.interface import EngineInfo
    from vigor_service.scheduling.engine_pool import EnginePool
    from vigor_service.threads.worker import WorkerThread
    from vigor_service.weights.version import Weights


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The number of engines, the number of processes of each, the cluster's address, and the engines' time limits."""

    num_engines: int
    num_shards: int
    address: str | None
    limits: Limits


class LoadedCluster:
    """Implements `Loaded`. ``info`` is available once the first engine has joined.

    Raises:
        StartupError: engines over several devices do not support a setting; the message names it.
    """

    def __init__(self, settings: EngineSettings, cluster: ClusterSettings) -> None:
        if cluster.num_shards > 1:
            refuse_unshardable(settings)
        self._cluster = cluster
        self._ray = RayCluster(cluster.address)
        self._num_gpus = gpus_per_engine(settings.device, cluster_has_gpus=self._ray.has_gpus)
        self._settings = replace(settings, device="cuda" if self._num_gpus else "cpu")
        copy = load_copy(settings, dtype="own" if settings.dtype == "auto" and self._num_gpus else settings.dtype)
        self.held, self.tokenizer, self.generation_ends = copy
        self._engines: ClusterEngines[RayChunk] | None = None

    @property
    def info(self) -> EngineInfo:
        """Description of what every engine measures."""
        assert self._engines is not None and self._engines.info is not None  # noqa: PT018, S101 - see above
        return self._engines.info

    def engines(self, _compute: WorkerThread, weights: Weights) -> EnginePool:
        """Return the pool of engines. It has started none of them yet."""
        self._engines = ClusterEngines(
            self._spawn,
            self._ray.put,
            self.held,
            weights,
            num_engines=self._cluster.num_engines,
            limits=self._cluster.limits,
            on_close=self._ray.close,
        )
        return self._engines

    def _spawn(self, _number: int) -> EngineHandle[RayChunk]:
        size = self._cluster.num_shards
        if size == 1:
            return self._ray.spawn(partial(load_scorer, self._settings), num_gpus=self._num_gpus)
        seconds = self._cluster.limits.computing
        loads = [partial(load_shard, self._settings, Shard(rank, size, seconds)) for rank in range(size)]
        return self._ray.spawn_sharded(loads, num_gpus=self._num_gpus)


def gpus_per_engine(device: str, *, cluster_has_gpus: bool) -> int:
    """Return the number of GPUs that each engine asks Ray for.

    If the settings name a GPU, an engine asks for one even if the cluster has none now: nodes with GPUs may join later,
    or be added because an engine waits for one.
    """
    return int(device.startswith("cuda") or (device == "auto" and cluster_has_gpus))
