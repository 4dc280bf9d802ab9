from dataclasses import replace

import pytest

from vigor_service.engine.sequences import ScoreParts, SequenceScore, TokenSequence
from vigor_service.scheduling.score_cache import ScoreCache


def _sequence(marker: int) -> TokenSequence:
    return TokenSequence((marker,), (0, 1, 2))


def _score(number: float) -> SequenceScore:
    return SequenceScore(3, number, number, number, number, number)


def test_scores_are_found_under_their_weights_only() -> None:
    cache = ScoreCache(max_entries=10)
    cache.keep("a", {_sequence(1): _score(0.5)})
    assert cache.find("a", [_sequence(1), _sequence(2)]) == {_sequence(1): _score(0.5)}
    assert cache.find("b", [_sequence(1)]) == {}


@pytest.mark.parametrize(
    "other",
    [
        TokenSequence((1, 2), (3,)),
        TokenSequence((1,), (2, 4)),
        TokenSequence((1,), (2, 3), (True, False)),
        TokenSequence((1,), (2, 3), (True, True)),
        TokenSequence((1,), (2, 3, 0)),
    ],
)
def test_other_tokens_another_border_or_another_mask_is_another_sequence(other: TokenSequence) -> None:
    cache = ScoreCache(max_entries=10)
    cache.keep("a", {TokenSequence((1,), (2, 3)): _score(0.5)})
    assert cache.find("a", [other]) == {}


def test_what_was_not_asked_for_longest_is_forgotten_when_there_are_too_many() -> None:
    cache = ScoreCache(max_entries=3)
    cache.keep("a", {_sequence(marker): _score(marker) for marker in range(3)})
    cache.find("a", [_sequence(0)])
    cache.keep("a", {_sequence(3): _score(3)})
    assert list(cache.find("a", map(_sequence, range(4)))) == [_sequence(0), _sequence(2), _sequence(3)]
    assert len(cache) == 3


def test_a_cache_without_entries_keeps_nothing() -> None:
    cache = ScoreCache(max_entries=0)
    cache.keep("a", {_sequence(1): _score(1)})
    assert cache.find("a", [_sequence(1)]) == {}


def test_a_score_with_its_norm_serves_who_needs_none_but_not_the_other_way() -> None:
    cache, signals = ScoreCache(max_entries=10), ScoreParts(norm=False)
    cache.keep("a", {_sequence(1): _score(1)}, signals)
    assert cache.find("a", [_sequence(1)]) == {}
    cache.keep("a", {_sequence(1): _score(2)})
    cache.keep("a", {_sequence(1): _score(3)}, signals)
    assert cache.find("a", [_sequence(1)], signals) == cache.find("a", [_sequence(1)]) == {_sequence(1): _score(2)}


def test_numbers_of_single_tokens_are_kept_only_where_it_is_said() -> None:
    parts, score = ScoreParts(token_logprobs=True), replace(_score(1), token_logprobs=[-1.0, -2.0, -3.0])
    cache, own = ScoreCache(max_entries=10), ScoreCache(max_entries=10, keeps_token_logprobs=True)
    for kept in (cache, own):
        kept.keep("a", {_sequence(1): score}, parts)
    assert cache.find("a", [_sequence(1)], parts) == {}
    assert cache.find("a", [_sequence(1)]) == {_sequence(1): _score(1)}
    assert own.find("a", [_sequence(1)], parts) == {_sequence(1): score}
