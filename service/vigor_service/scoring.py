"""One score request from its groups to its answer: encode, admit, wait for the weights, compute, rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vigor_client.schemas import FieldError, ScoreRequest, Usage
from vigor_service.admission import Admission
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.errors import DeadlineExceededError, SequenceExceedsMemoryError
from vigor_service.grading import grade, group_line, last_line, sequences_to_score
from vigor_service.group_watch import GroupWatch
from vigor_service.metrics import Metrics
from vigor_service.scheduler import DoesNotFitError, OnScores, Scheduler, Scored
from vigor_service.tokenization import EncodedGroup, Encoder
from vigor_service.weights.publication import Publication
from vigor_service.weights.weights import WeightRequirement
from vigor_service.worker import WorkerThread


@dataclass(frozen=True, slots=True)
class Scoring:
    """Answers score requests. What is heavy runs on ``preparation`` or, by the scheduler, on the compute thread."""

    model: str
    encoder: Encoder
    admission: Admission
    publication: Publication
    scheduler: Scheduler
    preparation: WorkerThread
    metrics: Metrics
    timeout_seconds: float

    async def score(self, request: ScoreRequest) -> str:
        """Return the answer as JSON. Cancelling it takes its work out of the queue.

        Raises:
            ServiceError: nothing was answered; says why.
        """
        async with self._time_limit(request):
            groups, sequences = await self.preparation.run(self._encode, request)
            scored = await self._compute(request, groups, sequences)
            return await self.preparation.run(self._answer, request, groups, scored)

    async def stream(self, request: ScoreRequest, put: Callable[[str], None]) -> None:
        """Give ``put`` the lines of the answer: each group's when it is finished, then the last one.

        It never waits for who reads them. Cancelling it takes its work out of the queue.

        Raises:
            ServiceError: nothing further is answered; says why.
        """
        async with self._time_limit(request):
            groups, sequences = await self.preparation.run(self._encode, request)
            watch = await self.preparation.run(GroupWatch, groups, request.truncated)
            computing = asyncio.ensure_future(self._compute(request, groups, sequences, watch.add))
            computing.add_done_callback(lambda _: watch.close())
            try:
                async for indices in watch.finished():
                    for line in await self.preparation.run(_group_lines, indices, groups, watch.scores, request):
                        put(line)
                scored = await computing
            finally:
                computing.cancel()
            put(await self.preparation.run(self._last_line, request, groups, scored))

    @asynccontextmanager
    async def _time_limit(self, request: ScoreRequest) -> AsyncGenerator[None]:
        seconds = self.timeout_seconds + request.wait_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise DeadlineExceededError(f"the request was not answered within {seconds:g} seconds") from error

    async def _compute(
        self,
        request: ScoreRequest,
        groups: Sequence[EncodedGroup],
        sequences: Sequence[TokenSequence],
        on_scores: OnScores | None = None,
    ) -> Scored:
        requirement = WeightRequirement(request.weight_version, request.weight_digest)
        with self.admission.hold(sum(sequence.num_tokens for sequence in sequences)):
            await self.publication.wait_for(requirement, wait_seconds=request.wait_seconds)
            try:
                return await self.scheduler.score(sequences, requirement, on_scores=on_scores)
            except DoesNotFitError as error:
                raise _exceeds_memory(groups, error.too_long) from error

    def _encode(self, request: ScoreRequest) -> tuple[list[EncodedGroup], list[TokenSequence]]:
        groups = self.encoder.encode(request)
        return groups, sequences_to_score(groups, request.truncated)

    def _answer(self, request: ScoreRequest, groups: Sequence[EncodedGroup], scored: Scored) -> str:
        response = grade(self.model, request, groups, scored)
        self._count(response.usage)
        return response.model_dump_json()

    def _last_line(self, request: ScoreRequest, groups: Sequence[EncodedGroup], scored: Scored) -> str:
        line = last_line(self.model, request, groups, scored)
        self._count(line.usage)
        return line.model_dump_json()

    def _count(self, usage: Usage) -> None:
        self.metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(usage.completion_tokens)
        self.metrics.tokens.labels("padding").inc(usage.padding_tokens)


def _group_lines(
    indices: Sequence[int],
    groups: Sequence[EncodedGroup],
    scores: Mapping[TokenSequence, SequenceScore],
    request: ScoreRequest,
) -> list[str]:
    return [group_line(index, groups, scores, request).model_dump_json() for index in indices]


def _exceeds_memory(
    groups: Sequence[EncodedGroup], too_long: Mapping[TokenSequence, int]
) -> SequenceExceedsMemoryError:
    """Return the error that names every place of the request with such a sequence."""
    places = [
        (group_index, completion_index, sequence)
        for group_index, group in enumerate(groups)
        for completion_index, sequence in enumerate(group.sequences)
        if sequence in too_long
    ]
    group, completion, sequence = places[0]
    return SequenceExceedsMemoryError(
        f"{len(places)} sequences do not fit into memory, not even alone; nothing of this request was scored",
        errors=[
            FieldError(
                loc=["groups", group, "completions", completion],
                msg=f"{sequence.num_tokens} tokens with its prompt, {too_long[sequence]} are known to fit",
            )
            for group, completion, sequence in places
        ],
        group=group,
        completion=completion,
        length=sequence.num_tokens,
        limit=too_long[sequence],
    )
