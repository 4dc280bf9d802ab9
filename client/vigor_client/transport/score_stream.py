"""Assembles the answer to a score request from its lines, and checks it against the request."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pydantic

from vigor_client.errors import ConnectionLostError
from vigor_client.schemas.scoring import (
    ErrorLine,
    GroupLine,
    GroupScore,
    LastLine,
    ScoreLine,
    ScoreRequest,
    ScoreResponse,
)
from vigor_client.transport.exchange import mixed_up, parse, problem_error, request_id_of, unexpected
from vigor_client.transport.wire import comes_in_lines

MAX_LINE_BYTES = 2**24  # several hundred times the largest group
OnGroup = Callable[[int, GroupScore], object]

_line = pydantic.TypeAdapter[GroupLine | LastLine | ErrorLine](ScoreLine)


class ScoreLines:
    """Reads the answer of one attempt. ``on_group`` is called with each group when its line arrives."""

    def __init__(self, request: ScoreRequest, on_group: OnGroup) -> None:
        self._request = request
        self._on_group = on_group
        self._groups: dict[int, GroupScore] = {}
        self._scores: ScoreResponse | None = None
        self._rest = b""

    def take(self, response: httpx.Response, chunk: bytes) -> None:
        """Take the next bytes of a streamed answer.

        Raises:
            ProblemError: the service says that the rest failed.
            UnexpectedAnswerError: a line does not follow the contract, or does not fit the request.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in filter(None, lines):
            self._take_line(response, line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise unexpected(response, f"a line of more than {MAX_LINE_BYTES} bytes", body=self._rest)

    def result(self, response: httpx.Response) -> ScoreResponse:
        """Return all scores; a service that does not support streaming sends them as one answer.

        Raises:
            ConnectionLostError: the lines ended too early.
            UnexpectedAnswerError: the whole answer does not follow the contract, or does not fit the request.
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
        self._refuse_others_groups(response, scores.groups)
        self._refuse_other_terms(response, scores)
        for index, group in enumerate(scores.groups):
            self._on_group(index, group)
        return scores

    def _take_line(self, response: httpx.Response, text: bytes) -> None:
        line = _parse(response, text)
        if isinstance(line, ErrorLine):
            raise problem_error(line.error, response, retry_after_seconds=line.retry_after_seconds or 0.0)
        if self._scores is not None:
            raise unexpected(response, "a line after the last one", body=text)
        if isinstance(line, GroupLine):
            self._add(response, line, text)
        else:
            self._complete(response, line, text)

    def _add(self, response: httpx.Response, line: GroupLine, text: bytes) -> None:
        if line.index >= len(self._request.groups):
            raise mixed_up(response, f"group {line.index} of {len(self._request.groups)}")
        if line.index in self._groups:
            raise unexpected(response, f"group {line.index} once more", body=text)
        group = GroupScore(**{name: value for name, value in line if name != "index"})
        self._refuse_others_group(response, line.index, group)
        self._groups[line.index] = group
        self._on_group(line.index, group)

    def _complete(self, response: httpx.Response, line: LastLine, text: bytes) -> None:
        if missing := [index for index in range(len(self._request.groups)) if index not in self._groups]:
            raise unexpected(response, f"a last line before group {missing[0]}", body=text)
        groups = [group for _, group in sorted(self._groups.items())]
        self._scores = ScoreResponse(groups=groups, **dict(line))
        self._refuse_other_terms(response, self._scores, body=text)

    def _refuse_others_groups(self, response: httpx.Response, groups: list[GroupScore]) -> None:
        if len(groups) != len(self._request.groups):
            raise mixed_up(response, f"{len(groups)} groups instead of {len(self._request.groups)}")
        for index, group in enumerate(groups):
            self._refuse_others_group(response, index, group)

    def _refuse_others_group(self, response: httpx.Response, index: int, group: GroupScore) -> None:
        """Refuse a group that is not the requested one: a trainer must never pair a score with another completion."""
        sent = self._request.groups[index]
        if group.id != sent.id:
            raise mixed_up(response, f"group {index} with the id {group.id!r} instead of {sent.id!r}")
        if len(group.completions) != len(sent.completions):
            raise mixed_up(response, f"group {index} with {len(group.completions)} scores of {len(sent.completions)}")

    def _refuse_other_terms(
        self, response: httpx.Response, scores: ScoreResponse, *, body: bytes | None = None
    ) -> None:
        """Refuse scores from weights, or of a reward, other than the requested ones."""
        for name in ("weight_version", "weight_digest", "reward"):
            required, answered = getattr(self._request, name), getattr(scores, name)
            if required is not None and answered != required:
                raise unexpected(response, f"{name} {answered!r} instead of {required!r}", body=body)


def each_once(on_group: OnGroup | None) -> OnGroup:
    """Return a function that calls ``on_group`` once per group, even if an answer is interrupted and sent again."""
    seen: set[int] = set()

    def notify(index: int, group: GroupScore) -> None:
        if on_group is not None and index not in seen:
            seen.add(index)
            on_group(index, group)

    return notify


def _parse(response: httpx.Response, text: bytes) -> GroupLine | LastLine | ErrorLine:
    try:
        return _line.validate_json(text)
    except pydantic.ValidationError as error:
        raise unexpected(response, "a line that is not in the contract", body=text) from error
