"""The pool of engines in other processes: sends them batches, keeps them on one version, replaces those that end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from vigor_client.weight_format.writes import Copy, VerifiedWrite
from vigor_service.cluster.member import EngineHandle, Member, Put, Stored, Totals
from vigor_service.cluster.packing import chunks_of
from vigor_service.errors import StartupError
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.scheduling.engine_pool import EngineLostError
from vigor_service.weights.version import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo, HeldWeights
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""First and maximum pause before an engine that ended is replaced, in seconds. The pause doubles after each engine that
ends without having joined."""

_logger = logging.getLogger(__name__)
R = TypeVar("R")


class RefusedEngineError(Exception):
    """A started engine does not fit this pool: it describes another model than the others, or holds other weights."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of an engine, in seconds: to load, to compute one batch or attribution, to receive weights."""

    loading: float
    computing: float
    weights: float


class ClusterEngines(Generic[Stored]):
    """Implements `EnginePool`.

    ``mirror`` holds the published weights on this host; an engine that joins receives them from it. ``put`` stores a
    chunk where every engine can read it. ``on_change`` is called when an engine has joined.
    """

    num_ahead = 0  # it is unknown which engine will be free first

    def __init__(
        self,
        spawn: Callable[[int], EngineHandle[Stored]],
        put: Put[Stored],
        mirror: HeldWeights,
        weights: Weights,
        *,
        num_engines: int,
        limits: Limits,
        on_close: Callable[[], None] = lambda: None,
        first_pause: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._first_pause = first_pause
        self._spawn = spawn
        self._put = put
        self._mirror = mirror
        self._num_wanted = num_engines
        self._on_close = on_close
        self._first_refusal: str | None = None
        self.info: EngineInfo | None = None
        self._published = weights
        self._limits = limits
        self._free = deque[Member[Stored]]()
        self._joined: dict[int, Member[Stored]] = {}
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()  # keepers of engines that are being removed
        self._alive: set[Member[Stored]] = set()
        self._totals: dict[int, Totals] = {}
        self._changed = asyncio.Event()  # an engine has joined, or was refused
        self._weights_lock = asyncio.Lock()  # held while weights change, and while an engine joins
        self._snapshot: list[Stored] | None = None  # all tensors of the published weights, once an engine needed them
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Start all engines, and return when the first has joined.

        Raises:
            StartupError: an engine cannot load the model, or does not fit this pool; the message says why.
        """
        self.scale(self._num_wanted)
        while not self._joined:
            await self._changed.wait()
            self._changed.clear()
            if self._first_refusal is not None:
                raise StartupError(self._first_refusal)

    @property
    def num_engines(self) -> int:
        """Number of engines that compute a batch or could begin one, including those that end after their batch."""
        return len(self._free) + sum(not member.idle.is_set() for member in self._alive)

    def statuses(self) -> list[EngineStatus]:
        """Return the status of each engine, including engines that are being started."""
        return [self._status(number) for number in sorted(self._keepers)]

    def scale(self, num_engines: int) -> None:
        """Set the number of engines: start more, or end those with the highest numbers after their current work."""
        for number in range(num_engines):
            if number not in self._keepers:
                self._keepers[number] = asyncio.create_task(self._keep(number))
        for number in [number for number in self._keepers if number >= num_engines]:
            self._retire(self._keepers.pop(number))

    async def close(self) -> None:
        """End all engines at once, without waiting for what they compute."""
        self.scale(0)
        for member in self._alive:
            member.handle.kill()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.to_thread(self._on_close)

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch on a free engine."""
        return await self._on_free_engine(lambda handle: handle.score(sequences, parts))

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a gradient norm by token and by layer, computed on a free engine."""
        return await self._on_free_engine(lambda handle: handle.attribute(sequence))

    async def measure_batch_tokens(self) -> int:
        """Measure on a free engine how many tokens a batch may have."""
        return await self._on_free_engine(lambda handle: handle.measure_batch_tokens())

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Send every engine the writes that make its next weights, while it computes with the current ones."""
        chunks = await asyncio.to_thread(self._stored, writes)
        await self._on_all(lambda member: self._stage(member, weights.version, chunks))

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Switch every engine to the staged weights. The caller makes sure that no batch runs.

        An engine that fails to switch is replaced by one that begins with the new weights, so no engine serves the
        old ones.
        """
        async with self._weights_lock:
            await asyncio.to_thread(self._mirror.load, writes)
            self._published, self._snapshot = weights, None
            await self._on_all(self._bring_to_published)

    async def _on_free_engine(self, call: Callable[[EngineHandle[Stored]], Awaitable[R]]) -> R:
        if not self._free:
            raise EngineLostError("no engine is free")
        member = self._free.popleft()
        try:
            async with member.busy():
                return await member.call(call(member.handle))
        except EngineLostError as error:
            self._dismiss(member, str(error))
            raise
        finally:
            if self._joined.get(member.number) is member:
                self._free.append(member)

    async def _on_all(self, do: Callable[[Member[Stored]], Awaitable[None]]) -> None:
        """Call ``do`` for every engine. An engine for which it fails is dismissed, and replaced by its keeper."""
        members = list(self._joined.values())
        for member, error in zip(members, await asyncio.gather(*map(do, members), return_exceptions=True), strict=True):
            if error is not None:
                self._dismiss(member, f"failed to take weights: {error}")

    async def _keep(self, number: int) -> None:
        """Keep an engine running under this number, with a new one whenever one ends, until cancelled."""
        totals, pause = self._totals.setdefault(number, Totals()), self._first_pause
        while True:
            handle = await asyncio.to_thread(self._spawn, number)  # it may wait for the cluster
            member = Member(number, handle, self._limits.computing, totals)
            await self._live(member)
            _logger.error("engine_ended", extra={"engine": number, "reason": member.why_lost})
            if member.version is not None:
                pause = self._first_pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            totals.num_restarts += 1

    async def _live(self, member: Member[Stored]) -> None:
        """Have one engine join, and wait until it ends. If cancelled, end the engine after its current work."""
        self._alive.add(member)
        watch = asyncio.ensure_future(self._watch(member))
        try:
            await self._join(member)
            await member.lost.wait()
        except (EngineLostError, RefusedEngineError, StartupError) as error:
            member.lose(str(error))
            self._first_refusal = self._first_refusal or str(error)
            self._changed.set()
        finally:
            self._dismiss(member, "was stopped on purpose")
            await member.idle.wait()
            watch.cancel()
            member.handle.kill()
            self._alive.discard(member)

    def _retire(self, keeper: asyncio.Task[None]) -> None:
        self._retiring.add(keeper)
        keeper.add_done_callback(self._retiring.discard)
        keeper.cancel()

    async def _watch(self, member: Member[Stored]) -> None:
        """Dismiss an engine when its process ends, even if it is computing nothing."""
        try:
            await member.handle.live()
        except EngineLostError as error:
            self._dismiss(member, str(error))

    async def _join(self, member: Member[Stored]) -> None:
        """Wait until an engine has loaded, switch it to the published weights, and make it available for batches."""
        info = await member.call(member.handle.describe(), seconds=self._limits.loading)
        self._refuse_other(info)
        async with self._weights_lock:
            if await self._digest(member) != self._published.digest:
                await self._bring_to_published(member)
                if (digest := await self._digest(member)) != self._published.digest:
                    raise RefusedEngineError(f"has weights {digest}, but {self._published.digest} are published")
            member.version = self._published.version
            self._joined[member.number] = member
            self._free.append(member)
        _logger.info("engine_joined", extra={"engine": member.number, "version": member.version})
        self._changed.set()
        self.on_change()

    async def _digest(self, member: Member[Stored]) -> str:
        return await member.call(member.handle.digest(), seconds=self._limits.weights)

    def _refuse_other(self, info: EngineInfo) -> None:
        if self.info is None:
            self.info = info
        for name in ("architecture", "num_parameters", "dtype", "vocab_size", "max_sequence_tokens"):
            if getattr(info, name) != getattr(self.info, name):
                raise RefusedEngineError(f"has {name} {getattr(info, name)}, the others {getattr(self.info, name)}")

    async def _bring_to_published(self, member: Member[Stored]) -> None:
        """Switch an engine to the published weights: to the staged ones if they match, else to all of the mirror."""
        version = self._published.version
        if member.staged != version:
            if self._snapshot is None:
                self._snapshot = await asyncio.to_thread(self._stored, _copies(self._mirror.tensors()))
            await self._stage(member, version, self._snapshot)
        await member.call(member.handle.switch(version), seconds=self._limits.weights)
        member.version, member.staged = version, None

    async def _stage(self, member: Member[Stored], version: int, chunks: Sequence[Stored]) -> None:
        await member.call(member.handle.stage(version, chunks), seconds=self._limits.weights)
        member.staged = version

    def _stored(self, writes: Iterable[tuple[str, VerifiedWrite]]) -> list[Stored]:
        return [self._put(chunk) for chunk in chunks_of(writes)]

    def _dismiss(self, member: Member[Stored], reason: str) -> None:
        member.lose(reason)
        if self._joined.get(member.number) is member:
            del self._joined[member.number]
        if member in self._free:
            self._free.remove(member)

    def _status(self, number: int) -> EngineStatus:
        member, totals = self._joined.get(number), self._totals.get(number, Totals())
        return EngineStatus(
            number=number,
            is_up=member is not None,
            weight_version=None if member is None else member.version,
            busy_seconds=totals.busy_seconds + (0.0 if member is None else member.busy_seconds),
            num_batches=totals.num_batches,
            num_restarts=totals.num_restarts,
        )


def _copies(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Copy]]:
    return ((name, Copy(tensor)) for name, tensor in tensors.items())
