"""Which groups of a request are finished, as the scores of its sequences come in. Knows nothing about who scores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from vigor_client.schemas.scoring import TruncatedRule
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.scoring.ranking import sequences_to_score
from vigor_service.scoring.tokenization import EncodedGroup


class GroupWatch:
    """Told of scores as they come, tells of groups as they are finished. ``scores`` are all that came."""

    def __init__(self, groups: Sequence[EncodedGroup], truncated: TruncatedRule) -> None:
        self.scores: dict[TokenSequence, SequenceScore] = {}
        self._groups_of: dict[TokenSequence, list[int]] = {}
        self._num_missing: list[int] = []
        for index, group in enumerate(groups):
            sequences = sequences_to_score([group], truncated)
            self._num_missing.append(len(sequences))
            for sequence in sequences:
                self._groups_of.setdefault(sequence, []).append(index)
        self._computes_nothing = [index for index, missing in enumerate(self._num_missing) if missing == 0]
        self._finished: asyncio.Queue[list[int] | None] = asyncio.Queue()  # holds each group once at most

    def add(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Take scores that were not there yet. With the first ones, groups that need none are finished as well."""
        self.scores.update(scores)
        finished, self._computes_nothing = self._computes_nothing, []
        for index in (index for sequence in scores for index in self._groups_of[sequence]):
            self._num_missing[index] -= 1
            if self._num_missing[index] == 0:
                finished.append(index)
        if finished:
            self._finished.put_nowait(finished)

    def close(self) -> None:
        """No more scores come."""
        self._finished.put_nowait(None)

    async def finished(self) -> AsyncIterator[list[int]]:
        """Yield the indices of finished groups, each once, until there is an end."""
        while (indices := await self._finished.get()) is not None:
            yield indices
