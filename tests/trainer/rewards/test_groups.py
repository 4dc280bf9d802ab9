"""From samples to a request, and what is checked of the answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.trainer.fake_service import score_group
from vigor_client import CompletionScore, Group
from vigor_client.integrations.groups import InvalidGroupError
from vigor_client.integrations.trl.errors import WrongAnswerError
from vigor_client.integrations.trl.round import Round
from vigor_trainer.data.answers import Judged
from vigor_trainer.rewards.groups import SampledCompletion, whole_round


def sample(prompt: int, *ids: int, mask: list[int] | None = None) -> SampledCompletion:
    return SampledCompletion("?", "!", [prompt], list(ids), mask, "stop", Judged(None, None, is_boxed=False))


def ask(*samples: SampledCompletion, group_size: int = 2) -> Round:
    return whole_round(samples, group_size, step=7)


def answer(groups: Sequence[Group], **changes: object) -> list[CompletionScore]:
    """What the fake service says, with the first completion changed."""
    [first, *others] = [score for group in groups for score in score_group(group).completions]
    return [first.model_copy(update=changes), *others]


def test_what_is_asked_are_whole_groups() -> None:
    first, second = ask(sample(1, 5), sample(1, 6, 7, mask=[1, 0]), sample(2, 8), sample(2, 9)).groups()
    assert (first.id, first.prompt_ids, second.id, second.prompt_ids) == ("step7/0", [1], "step7/1", [2])
    assert [(completion.ids, completion.mask) for completion in first.completions] == [([5], None), ([6, 7], [1, 0])]


def test_a_group_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidGroupError, match=r"3 completions .* are not whole groups of 2"):
        ask(sample(1, 5), sample(1, 6), sample(2, 8))


def test_a_group_of_two_prompts_is_refused() -> None:
    with pytest.raises(InvalidGroupError, match="group 0 mixes"):
        ask(sample(1, 5), sample(2, 6))


def test_a_fitting_answer_passes() -> None:
    asked = ask(sample(1, 5, 6), sample(1, 7), sample(2, 8), sample(2, 9))
    asked.check_tokens(answer(asked.groups()))


def test_masked_tokens_do_not_count() -> None:
    asked = ask(sample(1, 5, 6, mask=[1, 0]), sample(1, 7))
    asked.check_tokens(answer(asked.groups(), num_tokens=1))


def test_an_answer_about_other_tokens_is_refused() -> None:
    asked = ask(sample(1, 5, 6), sample(1, 7))
    with pytest.raises(WrongAnswerError, match=r"step7/0, completion 0: the service scored 1 tokens of the 2"):
        asked.check_tokens(answer(asked.groups(), num_tokens=1))


def test_a_completion_without_a_norm_has_a_rank_too() -> None:
    asked = ask(sample(1, 5, 6), sample(1, 7))
    asked.check_tokens(answer(asked.groups(), num_tokens=0, status="truncated"))
