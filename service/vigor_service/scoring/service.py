"""Answers score requests: encode, admit, compute, rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.scoring import GroupLine, LastLine, ScoreRequest, ScoringOptions, WeightOptions
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.errors import DeadlineExceededError, SequenceExceedsMemoryError
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.jobs import DoesNotFitError, OnScores, RequestScores
from vigor_service.scheduling.scheduler import Scheduler
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.encoded import EncodedGroup, EncodedRequest
from vigor_service.scoring.encoding import RequestEncoder
from vigor_service.scoring.group_progress import GroupProgress
from vigor_service.scoring.ranking import group_line, last_line, line_json, whole_answer
from vigor_service.threads.preparation import Preparation

SMALL_ANSWER_CHARACTERS = 1 << 20
"""Lines with at most this many characters in total are joined in about a millisecond."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Line = TypeVar("_Line")
Put = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scoring:
    """Answers score requests.

    Work that takes longer than about a millisecond runs on the threads of ``preparation``, or through the scheduler on
    the engines.
    """

    model: str
    encoder: RequestEncoder
    admission: Admission
    scheduler: Scheduler
    preparation: Preparation
    metrics: Metrics
    timeout_seconds: float

    async def score(self, request: ScoreRequest, put: Put) -> None:
        """Pass ``put`` the lines of the answer as JSON: each group's line when the group is finished, then the last.

        The call never waits for the reader. Cancelling it removes its work from the queue.

        Raises:
            ServiceError: no further line follows; the message says why.
        """
        async with time_limit(self.timeout_seconds, request):
            encoded = await self.encoder.encode(request)
            with self.admission.hold(encoded.admitted_tokens):
                last = await self._rank(encoded, line_json, put)
            put(last.model_dump_json())

    async def whole(self, work: Callable[[Put], Awaitable[None]]) -> str:
        """Return the lines that ``work`` passes to its callback, joined into one JSON text. Raises as ``work``."""
        lines: list[str] = []
        await work(lines.append)
        if sum(map(len, lines)) <= SMALL_ANSWER_CHARACTERS:
            return whole_answer(lines)
        return await self.preparation.run(whole_answer, lines)

    async def score_group(
        self, group: EncodedGroup, options: ScoringOptions, *, own_scores: ScoreCache
    ) -> tuple[GroupLine, LastLine]:
        """Return the two lines of one complete group that is already admitted. ``own_scores``: see ``Scheduler.score``.

        Raises:
            ServiceError: the group was not scored; the message says why.
        """
        lines: list[GroupLine] = []
        async with time_limit(self.timeout_seconds, options):
            request = await self.preparation.run(EncodedRequest, options, [group])
            last = await self._rank(request, lambda line: line, lines.append, own_scores=own_scores)
        return lines[0], last

    async def compute(
        self, request: EncodedRequest, *, on_scores: OnScores | None = None, own_scores: ScoreCache | None = None
    ) -> RequestScores:
        """Return the scores of an encoded and admitted request, without ranks. Arguments: see ``Scheduler.score``.

        Raises:
            ServiceError: the request was not scored; the message says why.
        """
        try:
            return await self.scheduler.score(
                request.groups_of,
                request.requirement,
                parts=request.parts,
                wait_seconds=request.options.wait_seconds,
                on_scores=on_scores,
                own_scores=own_scores,
            )
        except DoesNotFitError as error:
            raise await self._beside(request, _exceeds_memory, request.groups, error.too_long) from error

    async def _rank(
        self,
        request: EncodedRequest,
        write: Callable[[GroupLine], _Line],
        put: Callable[[_Line], None],
        *,
        own_scores: ScoreCache | None = None,
    ) -> LastLine:
        """Compute the scores, and rank each group once its scores are known. ``put`` gets the result of ``write``."""
        progress = await self._beside(request, GroupProgress, request)
        computing = asyncio.ensure_future(self.compute(request, on_scores=progress.add, own_scores=own_scores))
        computing.add_done_callback(lambda _: progress.close())
        try:
            async for indices in progress.finished():
                for line in await self._beside(request, self._group_lines, request, indices, progress.scores, write):
                    put(line)
            scored = await computing
        finally:
            computing.cancel()
        return await self._beside(request, self._last_line, request, scored)

    async def _beside(self, request: EncodedRequest, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run work whose cost grows with the request: directly for a small request, else on a preparation thread."""
        if request.is_small:
            return work(*args, **kwargs)
        return await self.preparation.run(work, *args, **kwargs)

    def _group_lines(
        self,
        request: EncodedRequest,
        indices: Sequence[int],
        scores: Mapping[TokenSequence, SequenceScore],
        write: Callable[[GroupLine], _Line],
    ) -> list[_Line]:
        return [write(self._group_line(request, index, scores)) for index in indices]

    def _group_line(
        self, request: EncodedRequest, index: int, scores: Mapping[TokenSequence, SequenceScore]
    ) -> GroupLine:
        line = group_line(request, index, scores)
        self.metrics.observe_group(request.groups[index].sequences, line.completions)
        return line

    def _last_line(self, request: EncodedRequest, scored: RequestScores) -> LastLine:
        line = last_line(self.model, request, scored)
        self.metrics.tokens.labels("prompt").inc(line.usage.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(line.usage.completion_tokens)
        return line


@asynccontextmanager
async def time_limit(timeout_seconds: float, request: WeightOptions) -> AsyncGenerator[None]:
    """Raise DeadlineExceededError when a request takes longer than this time plus the time it may wait for weights."""
    seconds = timeout_seconds + request.wait_seconds
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineExceededError(f"the request was not answered within {seconds:g} seconds") from error


def _exceeds_memory(
    groups: Sequence[EncodedGroup], too_long: Mapping[TokenSequence, int]
) -> SequenceExceedsMemoryError:
    """Return the error that lists every place in the request with a sequence that is too long."""
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
                msg=f"{sequence.num_tokens} tokens with its prompt, {too_long[sequence]} are known to fit into memory",
            )
            for group, completion, sequence in places
        ],
        group=group,
        completion=completion,
        length=sequence.num_tokens,
        limit=too_long[sequence],
    )
