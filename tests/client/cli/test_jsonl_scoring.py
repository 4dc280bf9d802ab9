"""Many lines in requests of a bounded size, and what a group that is refused means for the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.test_client import DIGEST, scores
from vigor_client.chunking import MAX_REQUEST_BYTES
from vigor_client.cli.jsonl_input import JsonlInput
from vigor_client.cli.jsonl_lines import RefusedGroup, ScoredGroup, check_lines
from vigor_client.cli.jsonl_scoring import Result, score_groups
from vigor_client.errors import (
    PROBLEM_ERRORS,
    ConnectionLostError,
    InputError,
    ProblemError,
    UnexpectedAnswerError,
    VigorError,
)
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import Group, GroupScore, ScoreResponse
from vigor_client.transport.score_stream import OnGroup

Refuse = Callable[[list[Group]], VigorError | None]


class Asked:
    """Scores requests, unless ``refuse`` has an error for one, and tells of the groups before, as a stream may."""

    def __init__(self, refuse: Refuse) -> None:
        self.requests: list[list[str | None]] = []
        self._refuse = refuse

    def __call__(self, groups: list[Group], on_group: OnGroup) -> ScoreResponse:
        self.requests.append([group.id for group in groups])
        one = scores(sizes=(1,)).groups[0].completions
        found = [GroupScore(id=group.id, completions=one * len(group.completions)) for group in groups]
        for index, group in enumerate(found):
            on_group(index, group)
        if error := self._refuse(groups):
            raise error
        return scores(groups=found)


def source_of(tmp_path: Path, num_groups: int, *, text: str = "hi") -> JsonlInput:
    lines = [{"id": f"q{number}", "prompt": text, "completions": ["a", "b"]} for number in range(1, num_groups + 1)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlInput("in.jsonl", path)


def run(source: JsonlInput, score: Asked, *, groups_per_request: int = 4) -> list[Result]:
    """The results, once each is there in order and was counted once."""
    num_groups, counted = check_lines(source), list[int]()
    pairs = list(
        score_groups(
            source,
            score,
            groups_per_request=groups_per_request,
            num_groups=num_groups,
            on_group=lambda: counted.append(1),
        )
    )
    assert [line.group.id for line, _ in pairs] == [result.id for _, result in pairs]
    assert [line.number for line, _ in pairs] == list(range(1, num_groups + 1))
    assert len(counted) == num_groups
    return [result for _, result in pairs]


def refusal(status: int, code: str, *places: list[str | int], **data: object) -> ProblemError:
    errors = [{"loc": place, "msg": "415 tokens"} for place in places]
    problem = Problem.model_validate(
        {"type": "about:blank", "title": "t", "status": status, "code": code, "detail": "why", "errors": errors, **data}
    )
    return PROBLEM_ERRORS.get(code, ProblemError)(problem, request_id="r")


def naming(*bad: str, status: int = 413, code: str = "sequence_too_long") -> Refuse:
    """Refuses the groups with these ids, each by its second completion."""

    def refuse(groups: list[Group]) -> VigorError | None:
        places: list[list[str | int]] = [
            ["groups", index, "completions", 1] for index, group in enumerate(groups) if group.id in bad
        ]
        return refusal(status, code, *places) if places else None

    return refuse


def larger_than(num_groups: int, error: Callable[[], VigorError]) -> Refuse:
    return lambda groups: error() if len(groups) > num_groups else None


def proxys_refusal(status: int) -> UnexpectedAnswerError:
    return UnexpectedAnswerError("POST http://proxy answered html", status=status, request_id="r")


@pytest.mark.parametrize(("status", "code"), [(413, "sequence_too_long"), (422, "invalid_request")])
def test_a_group_that_is_refused_has_its_error_and_all_others_their_scores(
    tmp_path: Path, status: int, code: str
) -> None:
    score = Asked(naming("q2", "q6", "q7", status=status, code=code))
    results = run(source_of(tmp_path, 10), score)
    refused = {result.id: result.error for result in results if isinstance(result, RefusedGroup)}
    assert set(refused) == {"q2", "q6", "q7"}
    assert refused["q2"].model_dump() == {
        "status": status,
        "code": code,
        "detail": "completion 1: 415 tokens",
        "errors": [{"loc": ["completions", 1], "msg": "415 tokens"}],
    }
    assert {result.weight_digest for result in results if isinstance(result, ScoredGroup)} == {DIGEST}
    assert score.requests[:3] == [["q1", "q2", "q3", "q4"], ["q1", "q3", "q4"], ["q5", "q6", "q7", "q8"]]


def test_every_group_may_be_refused(tmp_path: Path) -> None:
    results = run(source_of(tmp_path, 5), Asked(naming(*(f"q{number}" for number in range(1, 6)))))
    assert [type(result) for result in results] == [RefusedGroup] * 5


@pytest.mark.parametrize(
    "error",
    [lambda: refusal(413, "payload_too_large"), lambda: proxys_refusal(413)],
    ids=["the service", "a proxy"],
)
def test_a_request_that_is_too_large_is_sent_in_halves_and_the_next_are_smaller(
    tmp_path: Path, error: Callable[[], VigorError]
) -> None:
    score = Asked(larger_than(2, error))
    results = run(source_of(tmp_path, 9), score, groups_per_request=4)
    assert [type(result) for result in results] == [ScoredGroup] * 9
    assert list(map(len, score.requests)) == [4, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (lambda: refusal(413, "payload_too_large"), "payload_too_large", "why"),
        (lambda: proxys_refusal(413), "payload_too_large", "POST http://proxy answered html"),
        (lambda: refusal(500, "internal"), "internal", "why"),
        (lambda: refusal(504, "deadline_exceeded"), "deadline_exceeded", "why"),
    ],
)
def test_a_group_with_which_any_request_fails_is_found_by_halves(
    tmp_path: Path, error: Callable[[], VigorError], code: str, detail: str
) -> None:
    score = Asked(lambda groups: error() if "q5" in [group.id for group in groups] else None)
    results = run(source_of(tmp_path, 8), score, groups_per_request=8)
    (refused,) = [result for result in results if isinstance(result, RefusedGroup)]
    assert (refused.id, refused.error.code, refused.error.detail) == ("q5", code, detail)


@pytest.mark.parametrize(
    "error",
    [
        refusal(401, "unauthenticated"),
        refusal(409, "weight_version_mismatch", have=1, want=2),
        refusal(422, "invalid_request", ["wait_seconds"]),
        refusal(422, "invalid_request", ["groups", 99, "prompt"]),
        refusal(503, "weights_poisoned"),
        refusal(418, "not_known"),
        proxys_refusal(502),
        ConnectionLostError("lost", request_id="r"),
    ],
    ids=str,
)
def test_what_is_not_about_a_group_ends_the_run(tmp_path: Path, error: VigorError) -> None:
    score = Asked(lambda _: error)
    with pytest.raises(type(error)) as caught:
        run(source_of(tmp_path, 8), score)
    assert caught.value is error
    assert len(score.requests) == 1


def test_requests_are_cut_by_bytes_before_any_is_refused(tmp_path: Path) -> None:
    score = Asked(lambda _: None)
    run(source_of(tmp_path, 7, text="x" * (MAX_REQUEST_BYTES // 3)), score, groups_per_request=16)
    assert list(map(len, score.requests)) == [2, 2, 2, 1]


def test_a_line_that_is_larger_than_a_request_goes_alone(tmp_path: Path) -> None:
    score = Asked(lambda _: None)
    run(source_of(tmp_path, 2, text="x" * (MAX_REQUEST_BYTES + 1)), score)
    assert list(map(len, score.requests)) == [1, 1]


def test_a_file_that_changes_while_it_is_scored_gives_no_complete_result(tmp_path: Path) -> None:
    source = source_of(tmp_path, 3)
    num_groups = check_lines(source)
    source.path.write_bytes(b"")
    found = score_groups(
        source, Asked(lambda _: None), groups_per_request=2, num_groups=num_groups, on_group=lambda: None
    )
    with pytest.raises(InputError, match=r"in\.jsonl: changed while it was scored: 0 groups instead of 3"):
        list(found)
