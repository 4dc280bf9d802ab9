"""The pool of engines in other processes: gives them batches, keeps them on one version, replaces those that end."""

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
"""Between an engine that ended and the next in its place; it doubles while they do not even join."""

_logger = logging.getLogger(__name__)
R = TypeVar("R")


class RefusedEngineError(Exception):
    """An engine that was started is not one of this pool: it measures something else, or holds other weights."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that an engine may take: to load, for one batch or attribution, to take weights."""

    loading: float
    computing: float
    weights: float


class ClusterEngines(Generic[Stored]):
    """Implements `EnginePool`.

    ``mirror`` holds the published weights on this host: an engine that joins gets them from it. ``put`` stores a chunk
    where every engine can read it. ``on_change`` is called when an engine has joined.
    """

    num_ahead = 0  # which engine will be free first is not known

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
        self._retiring: set[asyncio.Task[None]] = set()  # keepers of engines that are not wanted any more
        self._alive: set[Member[Stored]] = set()
        self._totals: dict[int, Totals] = {}
        self._changed = asyncio.Event()  # an engine has joined, or was refused
        self._weights_lock = asyncio.Lock()  # while they change, and while an engine is brought to them
        self._snapshot: list[Stored] | None = None  # all tensors of the published weights, once an engine needed them
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Start all engines, and return when the first has joined.

        Raises:
            StartupError: it cannot load the model, or is not of this pool; says why.
        """
        self.scale(self._num_wanted)
        while not self._joined:
            await self._changed.wait()
            self._changed.clear()
            if self._first_refusal is not None:
                raise StartupError(self._first_refusal)

    @property
    def num_engines(self) -> int:
        """Engines that compute a batch, or could begin one. Those that end behind theirs are among them."""
        return len(self._free) + sum(not member.idle.is_set() for member in self._alive)

    def statuses(self) -> list[EngineStatus]:
        """Say what each engine has done, those that are being started included."""
        return [self._status(number) for number in sorted(self._keepers)]

    def scale(self, num_engines: int) -> None:
        """Have this many engines: more are started, and those with the highest numbers end behind what they compute."""
        for number in range(num_engines):
            if number not in self._keepers:
                self._keepers[number] = asyncio.create_task(self._keep(number))
        for number in [number for number in self._keepers if number >= num_engines]:
            self._retire(self._keepers.pop(number))

    async def close(self) -> None:
        """End all engines, whatever they compute."""
        self.scale(0)
        for member in self._alive:
            member.handle.kill()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.to_thread(self._on_close)

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch on a free engine."""
        return await self._on_free_engine(lambda handle: handle.score(sequences, parts))

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Say where a gradient norm comes from, on a free engine."""
        return await self._on_free_engine(lambda handle: handle.attribute(sequence))

    async def measure_batch_tokens(self) -> int:
        """Return the number of tokens that a batch may have on one of the engines."""
        return await self._on_free_engine(lambda handle: handle.measure_batch_tokens())

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Give every engine what its next weights are made of, while it computes with those it has."""
        chunks = await asyncio.to_thread(self._stored, writes)
        await self._on_all(lambda member: self._stage(member, weights.version, chunks))

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Switch every engine to the staged weights; the caller keeps batches away.

        An engine that cannot is replaced, and what replaces it begins with the new weights: none serves the old ones.
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
        """Do it on every engine; those that are lost or refuse are replaced."""
        members = list(self._joined.values())
        for member, error in zip(members, await asyncio.gather(*map(do, members), return_exceptions=True), strict=True):
            if error is not None:
                self._dismiss(member, f"failed to take weights: {error}")

    async def _keep(self, number: int) -> None:
        """Have an engine under this number, until it is cancelled."""
        totals, pause = self._totals.setdefault(number, Totals()), self._first_pause
        while True:
            handle = await asyncio.to_thread(self._spawn, number)  # it may have to ask the cluster
            member = Member(number, handle, self._limits.computing, totals)
            await self._live(member)
            _logger.error("engine_ended", extra={"engine": number, "reason": member.why_lost})
            if member.version is not None:
                pause = self._first_pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            totals.num_restarts += 1

    async def _live(self, member: Member[Stored]) -> None:
        """Have one engine join and compute until it ends. Cancelled, it ends behind what it computes."""
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
        """Learn of the end of an engine that has nothing to do."""
        try:
            await member.handle.live()
        except EngineLostError as error:
            self._dismiss(member, str(error))

    async def _join(self, member: Member[Stored]) -> None:
        """Wait until an engine has loaded, bring it to the published weights, and let it have batches."""
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
        """Switch to what was staged, or, where that is not what is published, to all tensors of the mirror."""
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
