"""What a service with several engines loads itself: a copy of the weights on the host, the tokenizer, the cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vigor_service.cluster.engines import ClusterEngines, Limits
from vigor_service.cluster.ray_handles import RayChunk, RayCluster
from vigor_service.model_loading import EngineSettings, load_copy, load_engine

if TYPE_CHECKING:
    from vigor_service.engine.interface import EngineInfo, Scorer
    from vigor_service.scheduling.engine_pool import EnginePool
    from vigor_service.threads.worker import WorkerThread
    from vigor_service.weights.version import Weights


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How many engines there are, where, and the seconds that each may take."""

    num_engines: int
    address: str | None
    limits: Limits


class LoadedCluster:
    """Implements `Loaded`. ``info`` is there once the first engine has joined."""

    def __init__(self, settings: EngineSettings, cluster: ClusterSettings) -> None:
        self._cluster = cluster
        self._ray = RayCluster(cluster.address)
        self._num_gpus = gpus_per_engine(settings.device, cluster_has_gpus=self._ray.has_gpus)
        self._settings = replace(settings, device="cuda" if self._num_gpus else "cpu")
        copy = load_copy(settings, dtype="own" if settings.dtype == "auto" and self._num_gpus else settings.dtype)
        self.held, self.tokenizer, self.generation_ends = copy
        self._engines: ClusterEngines[RayChunk] | None = None

    @property
    def info(self) -> EngineInfo:
        """What every engine measures."""
        assert self._engines is not None and self._engines.info is not None  # noqa: PT018, S101 - see above
        return self._engines.info

    def engines(self, _compute: WorkerThread, weights: Weights) -> EnginePool:
        """Return the engines, none of which is started yet."""
        load = partial(_load_scorer, self._settings)
        self._engines = ClusterEngines(
            lambda _: self._ray.spawn(load, num_gpus=self._num_gpus),
            self._ray.put,
            self.held,
            weights,
            num_engines=self._cluster.num_engines,
            limits=self._cluster.limits,
            on_close=self._ray.close,
        )
        return self._engines


def gpus_per_engine(device: str, *, cluster_has_gpus: bool) -> int:
    """Return the number of GPUs that each engine asks Ray for.

    A device that is named counts, whatever the cluster has now: nodes with GPUs may join later, or be added because an
    engine waits for one.
    """
    return int(device.startswith("cuda") or (device == "auto" and cluster_has_gpus))


def _load_scorer(settings: EngineSettings) -> Scorer:
    return load_engine(settings).scorer
