"""A round is cut into requests that the service takes."""

from __future__ import annotations

from vigor_client import Completion, Group
from vigor_client.portions import in_portions
from vigor_client.schemas import MAX_GROUPS


def group(num_ids: int) -> Group:
    return Group(prompt_ids=[1], completions=[Completion(ids=[2] * (num_ids - 1))])


def sizes(portions: list[list[Group]]) -> list[int]:
    return [len(portion) for portion in portions]


def test_groups_go_together_as_far_as_a_request_may_be_large() -> None:
    groups = [group(4), group(6), group(1), group(30), group(9)]
    portions = in_portions(groups, max_tokens=10)
    assert sizes(portions) == [2, 1, 1, 1]
    assert [each for portion in portions for each in portion] == groups


def test_no_request_has_more_groups_than_one_may_have() -> None:
    assert sizes(in_portions([group(2)] * (MAX_GROUPS + 1))) == [MAX_GROUPS, 1]


def test_without_groups_there_is_no_request() -> None:
    assert in_portions([]) == []
