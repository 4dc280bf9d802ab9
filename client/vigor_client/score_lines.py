"""The answer to a score request, put together from the lines in which it comes, and held to what was asked."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pydantic

from vigor_client.errors import ConnectionLostError
from vigor_client.exchange import parse, problem_error, request_id_of, unexpected
from vigor_client.schemas import ErrorLine, GroupLine, GroupScore, LastLine, ScoreLine, ScoreRequest, ScoreResponse
from vigor_client.wire import comes_in_lines

MAX_LINE_BYTES = 2**24  # some hundred times the largest group
OnGroup = Callable[[int, GroupScore], object]

_line = pydantic.TypeAdapter[GroupLine | LastLine | ErrorLine](ScoreLine)


class ScoreLines:
    """Reads the answer of one attempt. ``on_group`` is told of each group when its line comes."""

    def __init__(self, request: ScoreRequest, on_group: OnGroup) -> None:
        self._request = request
        self._on_group = on_group
        self._groups: dict[int, GroupScore] = {}
        self._scores: ScoreResponse | None = None
        self._rest = b""

    def take(self, response: httpx.Response, chunk: bytes) -> None:
        """Take the next bytes of an answer in lines.

        Raises:
            ProblemError: the service says that the rest failed.
            UnexpectedAnswerError: a line is not in the contract, or not what was asked for.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in filter(None, lines):
            self._take_line(response, line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise unexpected(response, f"a line of more than {MAX_LINE_BYTES} bytes", body=self._rest)

    def result(self, response: httpx.Response) -> ScoreResponse:
        """Return all scores; from a service that does not know lines they come as a whole.

        Raises:
            ConnectionLostError: the lines ended too early.
            UnexpectedAnswerError: the whole answer is not in the contract, or not what was asked for.
        """
        if not comes_in_lines(response):
            return self._whole(response)
        if self._scores is None:
            request_id = request_id_of(response)
            place = f"{response.request.method} {response.request.url}"
            message = f"connection lost: {place}: the answer ended before its last line (request {request_id})"
            raise ConnectionLostError(message, request_id=request_id)
        return self._scores

    def _whole(self, response: httpx.Response) -> ScoreResponse:
        scores = parse(response, ScoreResponse)
        if difference := _difference(self._request, scores):
            raise unexpected(response, f"scores that were not asked for: {difference}")
        for index, group in enumerate(scores.groups):
            self._on_group(index, group)
        return scores

    def _take_line(self, response: httpx.Response, text: bytes) -> None:
        line = _parse(response, text)
        if isinstance(line, ErrorLine):
            raise problem_error(line.error, response, retry_after_seconds=line.retry_after_seconds or 0.0)
        if self._scores is not None:
            raise unexpected(response, "a line after the last one", body=text)
        fault = self._add(line) if isinstance(line, GroupLine) else self._complete(line)
        if fault is not None:
            raise unexpected(response, f"scores that were not asked for: {fault}", body=text)

    def _add(self, line: GroupLine) -> str | None:
        """Keep a group, or say what is wrong with it."""
        if line.index >= len(self._request.groups):
            return f"group {line.index} of {len(self._request.groups)}"
        if line.index in self._groups:
            return f"group {line.index} once more"
        group = GroupScore(id=line.id, completions=line.completions)
        self._groups[line.index] = group
        self._on_group(line.index, group)
        return None

    def _complete(self, line: LastLine) -> str | None:
        """Put the answer together, or say what is wrong with it."""
        groups = [group for _, group in sorted(self._groups.items())]
        self._scores = ScoreResponse(groups=groups, **dict(line))
        return _difference(self._request, self._scores)


def each_once(on_group: OnGroup | None) -> OnGroup:
    """Tell of each group once only, also where an answer breaks off and comes again."""
    told: set[int] = set()

    def tell(index: int, group: GroupScore) -> None:
        if on_group is not None and index not in told:
            told.add(index)
            on_group(index, group)

    return tell


def _parse(response: httpx.Response, text: bytes) -> GroupLine | LastLine | ErrorLine:
    try:
        return _line.validate_json(text)
    except pydantic.ValidationError as error:
        raise unexpected(response, "a line that is not in the contract", body=text) from error


def _difference(request: ScoreRequest, scores: ScoreResponse) -> str | None:
    """What was asked and what came, where they differ: a trainer must never pair a score with another completion."""
    asked = {
        "group sizes": [len(group.completions) for group in request.groups],
        "group ids": [group.id for group in request.groups],
        "weight_version": request.weight_version if request.weight_version is not None else scores.weight_version,
        "weight_digest": request.weight_digest or scores.weight_digest,
        "reward": request.reward,
    }
    came = {
        "group sizes": [len(group.completions) for group in scores.groups],
        "group ids": [group.id for group in scores.groups],
        "weight_version": scores.weight_version,
        "weight_digest": scores.weight_digest,
        "reward": scores.reward,
    }
    differing = (f"{name} {came[name]!r} instead of {asked[name]!r}" for name in asked if asked[name] != came[name])
    return next(differing, None)
