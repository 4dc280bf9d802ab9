"""One score request from its groups to its answer: encode, admit, wait for the weights, compute, rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.scoring import ScoreRequest, ScoreResponse, ScoringOptions, Usage, WeightOptions
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    SequenceExceedsMemoryError,
    SequenceTooLongError,
)
from vigor_service.observability.metrics import Metrics
from vigor_service.observability.request_record import Computation, current_record
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.scheduler import DoesNotFitError, OnScores, RequestScores, Scheduler
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.group_progress import GroupWatch
from vigor_service.scoring.media_tokens import refuse_media_tokens
from vigor_service.scoring.ranking import answer_json, grade, group_line, last_line, sequences_to_score
from vigor_service.scoring.tokenization import EncodedGroup, Encoder
from vigor_service.threads.preparation import Preparation
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.version import WeightRequirement

SMALL_REQUEST_COMPLETIONS = 64
SMALL_REQUEST_IDS = 16_384
"""A request of at most so many completions, and so many ids, is encoded or answered in about a millisecond."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request as token sequences: its groups, and what of them needs the engine, each once.

    ``num_tokens`` are those that the engine has to score. ``is_small`` says that the answer takes about a millisecond.
    """

    request: ScoringOptions
    groups: Sequence[EncodedGroup]
    sequences: Sequence[TokenSequence]
    num_tokens: int = field(init=False)
    is_small: bool = field(init=False)

    def __post_init__(self) -> None:
        num_completions = sum(len(group.sequences) for group in self.groups)
        num_ids = sum(len(group.sequences[0].prompt_ids) for group in self.groups)
        num_ids += sum(len(sequence.completion_ids) for group in self.groups for sequence in group.sequences)
        is_small = num_completions <= SMALL_REQUEST_COMPLETIONS and num_ids <= SMALL_REQUEST_IDS
        object.__setattr__(self, "num_tokens", sum(sequence.num_tokens for sequence in self.sequences))
        object.__setattr__(self, "is_small", is_small)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Answers score requests.

    What takes longer than about a millisecond runs on ``preparation`` or, by the scheduler, on the compute thread.
    """

    model: str
    encoder: Encoder
    admission: Admission
    current_weights: CurrentWeights
    scheduler: Scheduler
    preparation: Preparation
    metrics: Metrics
    timeout_seconds: float
    media_token_ids: frozenset[int] = frozenset()

    async def score(self, request: ScoreRequest) -> str:
        """Return the answer as JSON. Cancelling it takes its work out of the queue.

        Raises:
            ServiceError: nothing was answered; says why.
        """
        async with self.time_limit(request):
            encoded = await self.encode(request)
            with self.admission.hold(_num_admitted_tokens(encoded)):
                response = await self.grade(encoded, await self.compute(encoded))
            return await self._beside(encoded, answer_json, response)

    async def stream(self, request: ScoreRequest, put: Callable[[str], None]) -> None:
        """Give ``put`` the lines of the answer: each group's when it is finished, then the last one.

        It never waits for who reads them. Cancelling it takes its work out of the queue.

        Raises:
            ServiceError: nothing further is answered; says why.
        """
        async with self.time_limit(request):
            encoded = await self.encode(request)
            watch = await self._beside(encoded, GroupWatch, encoded.groups, request.truncated)
            with self.admission.hold(_num_admitted_tokens(encoded)):
                computing = asyncio.ensure_future(self.compute(encoded, watch.add))
                computing.add_done_callback(lambda _: watch.close())
                try:
                    async for indices in watch.finished():
                        for line in await self._beside(encoded, self._group_lines, indices, encoded, watch.scores):
                            put(line)
                    scored = await computing
                finally:
                    computing.cancel()
            put(await self._beside(encoded, self._last_line, encoded, scored))

    @asynccontextmanager
    async def time_limit(self, request: WeightOptions) -> AsyncIterator[None]:
        """Raise DeadlineExceededError when what a request is given to take, and to wait for weights, has passed."""
        seconds = self.timeout_seconds + request.wait_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise DeadlineExceededError(f"the request was not answered within {seconds:g} seconds") from error

    async def encode(self, request: ScoreRequest) -> Encoded:
        """Return the request as token sequences. A request of ids never waits for another's text.

        Raises as ``Encoder.encode``, ``refuse_media_tokens`` and ``WorkerPool.run``.
        """
        if _has_text(request):
            return await self.preparation.run_on_texts(self._encode, request)
        if _is_small(request):
            return self._encode(request)
        return await self.preparation.run(self._encode, request)

    async def encode_alone(self, request: ScoreRequest) -> Encoded:
        """Return a request that stands for one completion; errors name their places within the completion's own."""
        try:
            return await self.encode(request)
        except (InvalidRequestError, SequenceTooLongError) as error:
            error.errors = list(map(_in_sample, error.errors))
            raise

    async def compute(
        self, encoded: Encoded, on_scores: OnScores | None = None, *, own_scores: ScoreCache | None = None
    ) -> RequestScores:
        """Score what was admitted, once the weights are there. ``on_scores``, ``own_scores``: see ``Scheduler.score``.

        Raises:
            ServiceError: there are no scores; says why.
        """
        request = encoded.request
        requirement = WeightRequirement(request.weight_version, request.weight_digest)
        await self.current_weights.wait_for(requirement, wait_seconds=request.wait_seconds)
        try:
            return await self._schedule(encoded.sequences, requirement, on_scores, own_scores)
        except DoesNotFitError as error:
            raise await self._beside(encoded, _exceeds_memory, encoded.groups, error.too_long) from error

    async def grade(self, encoded: Encoded, scored: RequestScores) -> ScoreResponse:
        """Rank every group, and count what the request cost."""
        return await self._beside(encoded, self._grade, encoded, scored)

    async def _beside(self, encoded: Encoded, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run what costs by the size of the answer: at once if that is small, else beside the loop."""
        if encoded.is_small:
            return work(*args, **kwargs)
        return await self.preparation.run(work, *args, **kwargs)

    async def _schedule(
        self,
        sequences: Sequence[TokenSequence],
        requirement: WeightRequirement,
        on_scores: OnScores | None,
        own_scores: ScoreCache | None,
    ) -> RequestScores:
        record = current_record()
        computation = record.computation = Computation()
        tell = computation.watching(on_scores) if record.is_traced else on_scores
        scored = await self.scheduler.score(sequences, requirement, on_scores=tell, own_scores=own_scores)
        computation.finish(compute_seconds=scored.compute_seconds)
        record.weight_version = scored.weights.version
        return scored

    def _encode(self, request: ScoreRequest) -> Encoded:
        groups = self.encoder.encode(request)
        refuse_media_tokens(groups, self.media_token_ids)
        sequences = sequences_to_score(groups, request.truncated)
        return Encoded(request, groups, sequences)

    def _grade(self, encoded: Encoded, scored: RequestScores) -> ScoreResponse:
        response = grade(self.model, encoded.request, encoded.groups, scored)
        for group, score in zip(encoded.groups, response.groups, strict=True):
            self.metrics.observe_group(group.sequences, score.completions)
        self._count(response.usage)
        return response

    def _group_lines(
        self, indices: Sequence[int], encoded: Encoded, scores: Mapping[TokenSequence, SequenceScore]
    ) -> list[str]:
        return [self._group_line(index, encoded, scores) for index in indices]

    def _group_line(self, index: int, encoded: Encoded, scores: Mapping[TokenSequence, SequenceScore]) -> str:
        line = group_line(index, encoded.groups, scores, encoded.request)
        self.metrics.observe_group(encoded.groups[index].sequences, line.completions)
        return answer_json(line)

    def _last_line(self, encoded: Encoded, scored: RequestScores) -> str:
        line = last_line(self.model, encoded.request, encoded.groups, scored)
        self._count(line.usage)
        return line.model_dump_json()

    def _count(self, usage: Usage) -> None:
        self.metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(usage.completion_tokens)


def _num_admitted_tokens(encoded: Encoded) -> int:
    """Each completion counts as a token at least: one that the engine has nothing to do for is held and ranked too."""
    return max(encoded.num_tokens, sum(len(group.sequences) for group in encoded.groups))


def _has_text(request: ScoreRequest) -> bool:
    return any(
        group.prompt_ids is None or any(completion.ids is None for completion in group.completions)
        for group in request.groups
    )


def _is_small(request: ScoreRequest) -> bool:
    """Whether encoding a request of ids takes about a millisecond."""
    if sum(len(group.completions) for group in request.groups) > SMALL_REQUEST_COMPLETIONS:
        return False
    prompts = [group.prompt_ids or () for group in request.groups]
    completions = [completion.ids or () for group in request.groups for completion in group.completions]
    return sum(map(len, prompts + completions)) <= SMALL_REQUEST_IDS


def _in_sample(place: FieldError) -> FieldError:
    """The place where the sample has what a score request has in its only group."""
    match place.loc:
        case ["groups", 0, "completions", 0, *inner]:
            return FieldError(loc=["completion", *inner], msg=place.msg)
        case ["groups", 0, *inner]:
            return FieldError(loc=inner, msg=place.msg)
        case _:
            return place


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
