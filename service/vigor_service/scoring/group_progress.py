"""Tracks which groups of a request are finished as scores arrive. Does not know what computes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.scoring.encoded import EncodedRequest


class GroupProgress:
    """Receives scores as they arrive, and yields groups as they are finished. ``scores`` has all scores so far."""

    def __init__(self, request: EncodedRequest) -> None:
        self.scores: dict[TokenSequence, SequenceScore] = {}
        self._groups_of = request.groups_of
        self._num_missing = [0] * len(request.groups)
        for indices in request.groups_of.values():
            for index in indices:
                self._num_missing[index] += 1
        self._without_scores = [index for index, missing in enumerate(self._num_missing) if missing == 0]
        self._finished: asyncio.Queue[list[int] | None] = asyncio.Queue()  # has each group at most once

    def add(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Add new scores. The first call also finishes the groups that need no score."""
        self.scores.update(scores)
        finished, self._without_scores = self._without_scores, []
        for index in (index for sequence in scores for index in self._groups_of[sequence]):
            self._num_missing[index] -= 1
            if self._num_missing[index] == 0:
                finished.append(index)
        if finished:
            self._finished.put_nowait(finished)

    def close(self) -> None:
        """End ``finished``: no more scores will arrive."""
        self._finished.put_nowait(None)

    async def finished(self) -> AsyncIterator[list[int]]:
        """Yield the indices of finished groups, each once, until ``close`` is called."""
        while (indices := await self._finished.get()) is not None:
            yield indices
