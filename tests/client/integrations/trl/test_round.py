"""A round is cut into requests that the service takes."""

from __future__ import annotations

import pytest

from tests.client.test_client import scores
from vigor_client import Completion, Group, GroupScore, PayloadTooLargeError, UnexpectedAnswerError, VigorError
from vigor_client.chunking import chunk_groups, score_in_chunks
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import MAX_COMPLETIONS, MAX_GROUPS


def group(num_ids: int) -> Group:
    return Group(prompt_ids=[1], completions=[Completion(ids=[2] * (num_ids - 1))])


def num_bytes(groups: list[Group]) -> int:
    return sum(len(group.model_dump_json(exclude_none=True)) for group in groups)


def sizes(chunks: list[list[Group]]) -> list[int]:
    return [len(chunk) for chunk in chunks]


def test_groups_go_together_as_far_as_a_request_may_be_large() -> None:
    groups = [group(4), group(6), group(1), group(30), group(9)]
    chunks = chunk_groups(groups, max_bytes=num_bytes(groups[:2]))
    assert sizes(chunks) == [2, 1, 1, 1]
    assert [each for chunk in chunks for each in chunk] == groups


def test_no_request_has_more_groups_than_one_may_have() -> None:
    assert sizes(chunk_groups([group(2)] * (MAX_GROUPS + 1))) == [MAX_GROUPS, 1]


def test_no_request_has_more_completions_than_one_may_have() -> None:
    large, num_fitting = Group(prompt="a", completions=[Completion(ids=[1])] * 512), MAX_COMPLETIONS // 512
    assert sizes(chunk_groups([large] * (num_fitting + 1), max_bytes=2**40)) == [num_fitting, 1]


def test_without_groups_there_is_no_request() -> None:
    assert chunk_groups([]) == []


def test_text_counts_as_the_bytes_that_it_has() -> None:
    groups = [Group(prompt="題" * 10, completions=[Completion(text="a")])] * 3
    assert sizes(chunk_groups(groups, max_bytes=len(groups[0].model_dump_json(exclude_none=True)) + 1)) == [1, 1, 1]


def too_large() -> PayloadTooLargeError:
    problem = Problem(type="t", title="t", status=413, code="payload_too_large", detail="too many bytes")
    return PayloadTooLargeError(problem, request_id="r")


def proxys_answer(status: int) -> UnexpectedAnswerError:
    return UnexpectedAnswerError("POST http://proxy answered html", status=status, request_id="r")


@pytest.mark.parametrize("error", [too_large(), proxys_answer(413)])
def test_a_request_that_is_too_large_goes_in_halves(error: VigorError) -> None:
    asked: list[int] = []

    def score(chunk: list[Group]) -> list[GroupScore]:
        asked.append(len(chunk))
        if len(chunk) > 2:
            raise error
        return [GroupScore(id=group.id, completions=scores(sizes=(1,)).groups[0].completions) for group in chunk]

    groups = [Group(id=f"q{number}", prompt="p", completions=[Completion(text="a")]) for number in range(5)]
    assert [score.id for score in score_in_chunks(groups, score)] == ["q0", "q1", "q2", "q3", "q4"]
    assert asked == [5, 2, 3, 1, 2]


@pytest.mark.parametrize(("num_groups", "error"), [(1, too_large()), (1, proxys_answer(413)), (3, proxys_answer(502))])
def test_what_halves_do_not_cure_is_raised(num_groups: int, error: VigorError) -> None:
    def score(_: list[Group]) -> list[GroupScore]:
        raise error

    with pytest.raises(type(error)) as caught:
        score_in_chunks([group(4)] * num_groups, score)
    assert caught.value is error
