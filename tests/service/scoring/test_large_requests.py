"""What a request costs grows with what it brings, not with its completions times the length of its prompt."""

from collections.abc import Callable, Sequence
from time import thread_time

import pytest

from vigor_client.schemas.scoring import MAX_COMPLETIONS, Group, ScoreRequest
from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.errors import PayloadTooLargeError
from vigor_service.scheduling.fair_queue import Pool
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.tokenization import Encoder

NUM_GROUPS = 4
NUM_COMPLETIONS = 512
DIGEST = "xxh3-128:" + "0" * 32
SCORE = SequenceScore(1, 1.0, 1.0, 1.0, 1.0, 1.0)


def _request(num_prompt_ids: int) -> ScoreRequest:
    """Groups that all have the same prompt, and the same completions."""
    completions = [{"ids": [7, index]} for index in range(NUM_COMPLETIONS)]
    prompt_ids = [1000 + index for index in range(num_prompt_ids)]
    return ScoreRequest(
        groups=[Group.model_validate({"prompt_ids": prompt_ids, "completions": completions})] * NUM_GROUPS
    )


def _encoder(max_request_tokens: int = 1 << 30) -> Encoder:
    return Encoder(
        None,
        vocab_size=50_000,
        max_sequence_tokens=20_000,
        max_request_tokens=max_request_tokens,
        media_token_ids={999},
    )


def _prepare(request: ScoreRequest) -> Sequence[TokenSequence]:
    return list(_encoder().encode(request).groups_of)


def _queue(sequences: Sequence[TokenSequence]) -> None:
    cache, pool = ScoreCache(1), Pool[str]()
    cache.keep(DIGEST, {sequences[0]: SCORE})
    assert len(cache.find(DIGEST, sequences)) == 1
    for owner in ("first", "second"):
        pool.add(owner, sequences)
    assert pool.take_batch(40_000)
    pool.remove("second")


def _seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        began = thread_time()
        work()
        return thread_time() - began

    return min(once() for _ in range(2))


def test_preparing_a_group_reads_its_prompt_once() -> None:
    short, long = _request(4), _request(8192)
    assert _seconds(lambda: _prepare(long)) < 2 * _seconds(lambda: _prepare(short)) + 0.1


def test_finding_adding_and_choosing_sequences_does_not_read_their_prompts() -> None:
    # Two requests with equal prompts, which are different objects.
    short, long = ([*_prepare(_request(length)), *_prepare(_request(length))] for length in (4, 8192))
    assert _seconds(lambda: _queue(long)) < 2 * _seconds(lambda: _queue(short)) + 0.05


def test_the_groups_of_a_request_share_equal_prompts() -> None:
    first, *others = _encoder().encode(_request(4)).groups
    assert all(group.sequences[0].prompt_ids is first.sequences[0].prompt_ids for group in others)


def test_a_request_with_too_many_tokens_is_refused_at_the_completion_that_is_too_much() -> None:
    encoder = _encoder(max_request_tokens=1000)
    with pytest.raises(PayloadTooLargeError, match=r"more than 1000 tokens.*send fewer groups") as refused:
        encoder.encode(_request(4))
    assert refused.value.data == {"limit": 1000}
    assert [error.loc for error in refused.value.errors] == [["groups", 0, "completions", 166]]


def test_a_request_with_too_many_completions_is_refused() -> None:
    (group,) = _request(4).groups[:1]
    groups = [group] * (MAX_COMPLETIONS // NUM_COMPLETIONS)
    assert len(_encoder().encode(ScoreRequest(groups=groups)).groups) == len(groups)
    with pytest.raises(PayloadTooLargeError, match=r"66048 completions, the limit is 65536.*send fewer groups"):
        _encoder().encode(ScoreRequest(groups=[*groups, group]))


def test_as_many_tokens_as_are_allowed_are_taken() -> None:
    assert _encoder(max_request_tokens=NUM_GROUPS * NUM_COMPLETIONS * 6).encode(_request(4))


def test_a_sequence_that_is_too_long_is_told_as_that_whatever_the_limit_of_the_request() -> None:
    groups = [Group.model_validate({"prompt_ids": [50_000] * 30_000, "completions": [[1]]})]
    with pytest.raises(Exception, match=r"longer than the model's 20000 tokens"):
        _encoder(max_request_tokens=1000).encode(ScoreRequest(groups=groups))
