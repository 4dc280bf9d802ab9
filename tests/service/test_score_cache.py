from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.score_cache import ScoreCache

_LENGTH = 10


def _sequence(marker: int) -> TokenSequence:
    return TokenSequence((marker,), (0,) * (_LENGTH - 1))


def _score(number: float) -> SequenceScore:
    return SequenceScore(1, number, number, number, number)


def test_scores_are_found_under_their_weights_only() -> None:
    cache = ScoreCache(max_tokens=100)
    cache.keep("a", {_sequence(1): _score(0.5)})
    assert cache.find("a", [_sequence(1), _sequence(2)]) == {_sequence(1): _score(0.5)}
    assert cache.find("b", [_sequence(1)]) == {}


def test_the_same_tokens_with_another_mask_are_another_sequence() -> None:
    cache = ScoreCache(max_tokens=100)
    cache.keep("a", {TokenSequence((1,), (2, 3)): _score(0.5)})
    assert cache.find("a", [TokenSequence((1,), (2, 3), (True, False)), TokenSequence((1, 2), (3,))]) == {}


def test_what_was_not_asked_for_longest_is_forgotten_when_there_are_too_many_tokens() -> None:
    cache = ScoreCache(max_tokens=3 * _LENGTH)
    cache.keep("a", {_sequence(marker): _score(marker) for marker in range(3)})
    cache.find("a", [_sequence(0)])
    cache.keep("a", {_sequence(3): _score(3)})
    assert list(cache.find("a", map(_sequence, range(4)))) == [_sequence(0), _sequence(2), _sequence(3)]
    assert cache.num_tokens == 3 * _LENGTH


def test_keeping_a_score_again_does_not_count_its_tokens_again() -> None:
    cache = ScoreCache(max_tokens=100)
    for _ in range(3):
        cache.keep("a", {_sequence(1): _score(1)})
    assert cache.num_tokens == _LENGTH


def test_a_cache_of_no_tokens_keeps_nothing() -> None:
    cache = ScoreCache(max_tokens=0)
    cache.keep("a", {_sequence(1): _score(1)})
    assert cache.find("a", [_sequence(1)]) == {}
    assert cache.num_tokens == 0
