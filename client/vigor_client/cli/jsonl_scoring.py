"""Scores the groups of JSON lines: sends requests of a bounded size, and returns results in the order of the lines.

A request that is too large for the service is sent in halves. A group that the service refuses gets its error in place
of its scores, and the others are scored. Only one request's groups are in memory at a time. Knows nothing about the
command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from vigor_client.chunking import MAX_REQUEST_BYTES, is_too_large
from vigor_client.cli.jsonl_input import JsonlInput
from vigor_client.cli.jsonl_lines import Line, Refusal, RefusedGroup, ScoredGroup, read_groups
from vigor_client.errors import InputError, ProblemError, UnexpectedAnswerError
from vigor_client.schemas.faults import fault_sentence
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.scoring import Group, ScoreResponse
from vigor_client.transport.score_stream import OnGroup

Result = ScoredGroup | RefusedGroup
Score = Callable[[list[Group], OnGroup], ScoreResponse]

_ABOUT_GROUPS = frozenset(
    {"invalid_request", "sequence_too_long", "payload_too_large", "deadline_exceeded", "internal"}
)
"""Codes that a smaller request, or one without certain groups, may avoid. All others end the run."""


def score_groups(
    source: JsonlInput,
    score: Score,
    *,
    groups_per_request: int,
    num_groups: int,
    num_finished: int = 0,
    on_group: Callable[[], object],
) -> Iterator[tuple[Line, Result]]:
    """Yield each line with its result, from the group after the first ``num_finished`` on.

    ``score`` sends one request. ``on_group`` is called once for each group, as soon as its result arrives.

    Raises:
        InputError: a line is not a group, or the number of groups is not the ``num_groups`` that was counted before.
        VigorError: raised by ``score``, unless it is about single groups.
    """
    requests = _Requests(score, on_group, max_groups=groups_per_request)
    lines, num_read = islice(read_groups(source), num_finished, None), num_finished
    for batch in requests.cut(lines):
        yield from zip(batch, requests.results(batch), strict=True)
        num_read += len(batch)
    if num_read != num_groups:
        raise InputError(f"{source.name}: changed while it was scored: {num_read} groups instead of {num_groups}")


class _Requests:
    """Requests scores, and learns from refusals how many bytes a request may have."""

    def __init__(self, score: Score, on_group: Callable[[], object], *, max_groups: int) -> None:
        self._score = score
        self._on_group = on_group
        self._max_groups = max_groups
        self._max_bytes = MAX_REQUEST_BYTES

    def cut(self, lines: Iterator[Line]) -> Iterator[list[Line]]:
        """Yield the lines in batches, one per request; a line above the limit of a request is a batch of its own."""
        batch: list[Line] = []
        for line in lines:
            if batch and (len(batch) == self._max_groups or _num_bytes(batch) + line.num_bytes > self._max_bytes):
                yield batch
                batch = []
            batch.append(line)
        if batch:
            yield batch

    def results(self, batch: list[Line]) -> list[Result]:
        """Return the results of a batch, in its order, sending as many requests as needed."""
        results: dict[int, Result] = {}
        told: set[int] = set()
        pending = [batch]
        while pending:
            lines = pending.pop()
            try:
                results |= self._ask(lines, told)
            except (ProblemError, UnexpectedAnswerError) as error:
                refused = _refused(lines, error)
                results |= refused
                self._notify(told, *refused)
                pending += self._smaller(lines, refused, error)
        return [results[line.number] for line in batch]

    def _ask(self, lines: list[Line], told: set[int]) -> dict[int, ScoredGroup]:
        response = self._score([line.group for line in lines], lambda index, _: self._notify(told, lines[index].number))
        weights = {"weight_version": response.weight_version, "weight_digest": response.weight_digest}
        return {
            line.number: ScoredGroup.model_validate({**dict(group), **weights})
            for line, group in zip(lines, response.groups, strict=True)
        }

    def _smaller(
        self, lines: list[Line], refused: dict[int, RefusedGroup], error: ProblemError | UnexpectedAnswerError
    ) -> list[list[Line]]:
        """Return the batches to send next: the lines not refused, or two halves if the error names no group."""
        if rest := [line for line in lines if line.number not in refused]:
            if refused:
                return [rest]
            if is_too_large(error):
                self._max_bytes = _num_bytes(lines) // 2
            middle = len(rest) // 2
            return [rest[middle:], rest[:middle]]
        return []

    def _notify(self, told: set[int], *numbers: int) -> None:
        """Report each group once, even if an answer was interrupted and its groups are requested again."""
        for number in set(numbers) - told:
            self._on_group()
            told.add(number)


def _refused(lines: Sequence[Line], error: ProblemError | UnexpectedAnswerError) -> dict[int, RefusedGroup]:
    """Return the groups that an error is about, by line number; empty if it does not say which.

    Raises:
        ProblemError, UnexpectedAnswerError: ``error`` itself, if it is not only about groups.
    """
    if isinstance(error, UnexpectedAnswerError):
        if not is_too_large(error):
            raise error
        code, detail, places = "payload_too_large", str(error), dict[int, list[FieldError]]()  # a proxy's
    else:
        if error.code not in _ABOUT_GROUPS:
            raise error
        code, detail, places = error.code, error.detail, _places_by_group(lines, error)
    if not places and len(lines) == 1:
        places[0] = []
    return {
        lines[index].number: RefusedGroup(
            id=lines[index].group.id,
            error=Refusal(status=error.status, code=code, detail=_joined(faults) or detail, errors=faults),
        )
        for index, faults in places.items()
    }


def _places_by_group(lines: Sequence[Line], error: ProblemError) -> dict[int, list[FieldError]]:
    """Return the faults that an error names, by the group's index in the request, with places relative to the group.

    Raises:
        ProblemError: ``error`` itself, if a place is not within a group.
    """
    places: dict[int, list[FieldError]] = {}
    for fault in error.errors:
        match fault.loc:
            case ["groups", int(index), *inner] if index < len(lines):
                places.setdefault(index, []).append(FieldError(loc=inner, msg=fault.msg))
            case _:
                raise error
    return places


def _joined(faults: Sequence[FieldError]) -> str:
    return "; ".join(fault_sentence(fault.loc, fault.msg) for fault in faults)


def _num_bytes(lines: Sequence[Line]) -> int:
    return sum(line.num_bytes for line in lines)
