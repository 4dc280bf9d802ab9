from datetime import UTC, datetime
from math import inf, nan, sqrt
from typing import Any

import pytest

from vigor_client.schemas.scoring import CompletionScore, GroupScore, ScoreResponse, ScoringOptions
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.scheduling.jobs import RequestScores
from vigor_service.scoring.encoded import EncodedGroup, EncodedRequest
from vigor_service.scoring.ranking import group_line, last_line, line_json, whole_answer
from vigor_service.weights.version import Weights

GOOD, WORSE, WORST = (TokenSequence((1,), (marker,)) for marker in (1, 2, 3))
EMPTY = TokenSequence((1,), ())
MASKED_OUT = TokenSequence((1,), (4,), (False,))


def _score(grad_norm: float = 1.0, **signals: float) -> SequenceScore:
    return SequenceScore(
        num_loss_tokens=1,
        grad_norm=grad_norm,
        mean_logprob=signals.get("logprob", -1.0),
        mean_entropy=signals.get("entropy", 1.0),
        self_certainty=signals.get("self_certainty", 1.0),
        mean_probability=signals.get("probability", 0.5),
    )


def _request(*groups: EncodedGroup, **options: Any) -> EncodedRequest:  # noqa: ANN401 - fields of ScoringOptions
    return EncodedRequest(ScoringOptions.model_validate(options), groups)


def _response(model: str, request: EncodedRequest, scored: RequestScores) -> ScoreResponse:
    lines = [group_line(request, index, scored.scores) for index in range(len(request.groups))]
    groups = [GroupScore(**{name: value for name, value in line if name != "index"}) for line in lines]
    return ScoreResponse(groups=groups, **dict(last_line(model, request, scored)))


def _graded(
    sequences: list[TokenSequence],
    scores: dict[TokenSequence, SequenceScore],
    *,
    truncated_at: int | None = None,
    **options: Any,  # noqa: ANN401 - fields of ScoringOptions
) -> list[CompletionScore]:
    is_truncated = tuple(index == truncated_at for index in range(len(sequences)))
    group = EncodedGroup("q", tuple(sequences), is_truncated)
    return group_line(_request(group, **options), 0, scores).completions


def test_the_smallest_scaled_norm_gets_rank_one_and_reward_one() -> None:
    scores = {GOOD: _score(0.5), WORSE: _score(1.0), WORST: _score(2.0)}
    graded = _graded([WORST, GOOD, WORSE], scores)
    assert [item.rank for item in graded] == [3, 1, 2]
    assert [item.reward for item in graded] == [-1, 1, 0]
    assert {item.status for item in graded} == {"ok"}


def test_a_long_completion_is_compared_by_its_scaled_norm() -> None:
    long = TokenSequence((1,), (1,) * 16)
    scores = {GOOD: _score(1.0), long: SequenceScore(16, 0.5, -1, 1, 1, 1)}
    graded = _graded([long, GOOD], scores)
    assert graded[0].scaled_grad_norm == pytest.approx(0.5 * sqrt(16))
    assert [item.rank for item in graded] == [2, 1]


@pytest.mark.parametrize(
    ("reward", "signal", "good", "bad"),
    [
        ("self_certainty", "self_certainty", 9.0, 1.0),
        ("logprob", "logprob", -0.1, -5.0),
        ("entropy", "entropy", 0.1, 5.0),
    ],
)
def test_each_baseline_ranks_its_better_side_first(reward: str, signal: str, good: float, bad: float) -> None:
    scores = {GOOD: _score(9.0, **{signal: good}), WORSE: _score(1.0, **{signal: bad})}
    assert [item.rank for item in _graded([WORSE, GOOD], scores, reward=reward)] == [2, 1]


def test_equal_norms_share_a_rank_or_rank_by_index() -> None:
    scores = {GOOD: _score(1.0), WORSE: _score(1.0)}
    assert [item.rank for item in _graded([GOOD, WORSE], scores)] == [1.5, 1.5]
    assert [item.rank for item in _graded([GOOD, WORSE], scores, ties="ordinal")] == [1, 2]


def test_whatever_has_no_norm_shares_the_last_ranks() -> None:
    scores = {GOOD: _score(1.0), WORSE: _score(nan), WORST: _score(0.1)}
    graded = _graded([EMPTY, GOOD, WORSE, WORST], scores, truncated_at=3, truncated="worst")
    assert [item.status for item in graded] == ["empty", "ok", "nonfinite", "truncated"]
    assert [item.rank for item in graded] == [3, 1, 3, 3]
    assert graded[3].grad_norm is None


def test_a_truncated_completion_is_scored_unless_asked_otherwise() -> None:
    graded = _graded([GOOD, WORSE], {GOOD: _score(2.0), WORSE: _score(1.0)}, truncated_at=1)
    assert [(item.status, item.rank) for item in graded] == [("ok", 2), ("ok", 1)]


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_numbers_that_are_not_finite_are_null_on_the_wire(number: float) -> None:
    (graded,) = _graded([GOOD], {GOOD: _score(number)})
    assert (graded.status, graded.grad_norm, graded.scaled_grad_norm) == ("nonfinite", None, None)
    assert graded.mean_logprob == -1.0


@pytest.mark.parametrize("signal", ["logprob", "entropy", "self_certainty"])
@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_only_what_is_ranked_must_be_finite(signal: str, number: float) -> None:
    scores = {GOOD: _score(0.5, **{signal: number}), WORSE: _score(1.0)}
    good, worse = _graded([GOOD, WORSE], scores)
    assert [(item.status, item.rank) for item in (good, worse)] == [("ok", 1), ("ok", 2)]
    name = signal if signal == "self_certainty" else f"mean_{signal}"
    assert getattr(good, name) is None
    good, worse = _graded([GOOD, WORSE], scores, reward=signal)
    assert [(item.status, item.rank) for item in (good, worse)] == [("nonfinite", 2), ("ok", 1)]


def test_a_completion_that_is_masked_out_is_empty() -> None:
    (graded,) = _graded([MASKED_OUT], {})
    assert (graded.status, graded.num_tokens, graded.reward) == ("empty", 0, 0)


def test_only_what_has_a_norm_is_computed_and_once() -> None:
    group = EncodedGroup(None, (GOOD, EMPTY, GOOD, MASKED_OUT, WORSE), (False, False, False, False, True))
    assert _request(group, group, truncated="worst").groups_of == {GOOD: [0, 1]}
    assert list(_request(group, truncated="score").groups_of) == [GOOD, WORSE]


def test_usage_counts_prompts_once_a_group_and_duplicates_by_completion() -> None:
    weights = Weights(7, "xxh3-128:" + "0" * 32, (), 0, "float32", datetime.now(UTC))
    scored = RequestScores({GOOD: _score(), WORSE: _score()}, weights, 1.0, 1.25, 1.75)
    groups = [EncodedGroup("a", (GOOD, GOOD, WORSE), (False,) * 3), EncodedGroup("b", (GOOD, EMPTY), (False,) * 2)]
    response = _response("model", _request(*groups), scored)
    assert response.usage.model_dump() == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "deduplicated_completions": 2,
    }
    assert (response.weight_version, response.timing.queue_seconds, response.timing.compute_seconds) == (7, 0.25, 0.5)
    assert [group.id for group in response.groups] == ["a", "b"]


def test_an_answer_put_together_is_the_json_of_the_whole() -> None:
    weights = Weights(7, "xxh3-128:" + "0" * 32, (), 0, "float32", datetime.now(UTC))
    scored = RequestScores({GOOD: _score(), WORSE: _score(nan)}, weights, 1.0, 1.25, 1.75)
    odd = '"groups":[]"completions":[],"usage":{"index":\\'
    groups = [EncodedGroup(odd, (GOOD, GOOD, WORSE), (False,) * 3), EncodedGroup(None, (GOOD, EMPTY), (False,) * 2)]
    for request in (_request(*groups), _request(*groups, return_token_ids=True)):
        lines = [group_line(request, index, scored.scores) for index in (1, 0)]
        for line in lines:
            assert line_json(line) == line.model_dump_json()
        texts = [*map(line_json, lines), last_line(odd, request, scored).model_dump_json()]
        assert whole_answer(texts) == _response(odd, request, scored).model_dump_json()
