"""An engine as the pool has one in another process, without the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.support.fake_scorer import FakeScorer
from vigor_service.cluster.actor import EngineActor
from vigor_service.cluster.packing import Chunk
from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo
from vigor_service.engine.sequences import ScoreParts, TokenSequence
from vigor_service.scheduling.engine_pool import EngineLostError


class FakeHandle:
    """An engine that is called directly.

    ``hangs`` names calls that never answer, ``dies`` those that end it, ``waits`` those that answer behind an event.
    """

    def __init__(self) -> None:
        self.scorer = FakeScorer()
        self.actor = EngineActor(lambda: self.scorer)
        self.ended = asyncio.Event()
        self.hangs: set[str] = set()
        self.dies: set[str] = set()
        self.waits: dict[str, asyncio.Event] = {}
        self.info = self.scorer.info

    async def _answer(self, name: str) -> None:
        if name in self.dies:
            self.ended.set()
        if name in self.hangs:
            await self.ended.wait()
        if name in self.waits:
            await self.waits[name].wait()
        await asyncio.sleep(0)
        if self.ended.is_set():
            raise EngineLostError("the process ended")

    async def live(self) -> None:
        await self.ended.wait()
        raise EngineLostError("the process ended")

    async def describe(self) -> EngineInfo:
        await self._answer("describe")
        return self.info

    async def digest(self) -> str:
        await self._answer("digest")
        return self.actor.digest()

    async def measure_batch_tokens(self) -> int:
        return self.actor.measure_batch_tokens()

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        await self._answer("score")
        return self.actor.score(sequences, parts)

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        await self._answer("attribute")
        return self.actor.attribute(sequence)

    async def stage(self, version: int, chunks: Sequence[Chunk]) -> None:
        await self._answer("stage")
        self.actor.stage(version, *chunks)

    async def switch(self, version: int) -> None:
        await self._answer("switch")
        self.actor.switch(version)

    def kill(self) -> None:
        self.ended.set()
