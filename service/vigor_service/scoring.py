"""One score request from its groups to its answer: encode, admit, wait for the weights, compute, rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vigor_client.schemas import FieldError, ScoreRequest, ScoreResponse, ScoringOptions, TruncatedRule, Usage
from vigor_service.admission import Admission
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import DeadlineExceededError, SequenceExceedsMemoryError
from vigor_service.grading import grade, sequences_to_score
from vigor_service.metrics import Metrics
from vigor_service.scheduler import DoesNotFitError, Scheduler
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
        async with self.time_limit(request):
            groups = await self.encode(request)
            with self.admission.hold(num_tokens(groups, request.truncated)):
                response = await self.compute(request, groups)
            return await self.preparation.run(response.model_dump_json)

    @asynccontextmanager
    async def time_limit(self, request: ScoringOptions) -> AsyncIterator[None]:
        """Raise DeadlineExceededError when what a request is given to take, and to wait for weights, has passed."""
        seconds = self.timeout_seconds + request.wait_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise DeadlineExceededError(f"the request was not answered within {seconds:g} seconds") from error

    async def encode(self, request: ScoreRequest) -> list[EncodedGroup]:
        """Return the groups as token sequences. Raises as ``Encoder.encode``."""
        return await self.preparation.run(self.encoder.encode, request)

    async def compute(self, request: ScoreRequest, groups: Sequence[EncodedGroup]) -> ScoreResponse:
        """Score and rank what was encoded and admitted, once the weights are there."""
        requirement = WeightRequirement(request.weight_version, request.weight_digest)
        await self.publication.wait_for(requirement, wait_seconds=request.wait_seconds)
        try:
            scored = await self.scheduler.score(sequences_to_score(groups, request.truncated), requirement)
        except DoesNotFitError as error:
            raise _exceeds_memory(groups, error.too_long) from error
        response = await self.preparation.run(grade, self.model, request, groups, scored)
        self._count(response.usage)
        return response

    def _count(self, usage: Usage) -> None:
        self.metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(usage.completion_tokens)
        self.metrics.tokens.labels("padding").inc(usage.padding_tokens)


def num_tokens(groups: Sequence[EncodedGroup], truncated: TruncatedRule) -> int:
    """Return the tokens of all sequences that need the engine."""
    return sum(sequence.num_tokens for sequence in sequences_to_score(groups, truncated))


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
