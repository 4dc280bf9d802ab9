"""Which sequences share a pass, and which thread runs it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.cases import random_sequence
from vigor_service.engine.batching.microbatches import queues, small_batches
from vigor_service.engine.sequences import TokenSequence


def sequences_of(*lengths: int) -> list[TokenSequence]:
    rng = random.Random(0)
    return [random_sequence(rng, 1, length - 1) for length in lengths]


def lengths_of(batch: list[TokenSequence]) -> list[int]:
    return [sequence.num_tokens for sequence in batch]


def test_a_batch_ends_when_it_has_enough_tokens() -> None:
    batches = small_batches(sequences_of(10, 300, 90, 100, 200, 10), num_tokens=192)
    assert [lengths_of(batch) for batch in batches] == [[300], [200], [100, 90, 10], [10]]


def test_queues_have_about_the_same_number_of_tokens_and_the_largest_batches_do_not_meet() -> None:
    batches = small_batches(sequences_of(256, 237, 219, 201, 182, 164, 146, 128), num_tokens=100)
    first, second = ([sum(lengths_of(batch)) for batch in queue] for queue in queues(batches, num_queues=2))
    assert first == [256, 201, 164, 146]
    assert second == [128, 182, 219, 237]


def test_there_are_no_more_queues_than_batches() -> None:
    assert len(queues([sequences_of(3)], num_queues=4)) == 1
    assert queues([], num_queues=4) == []


@given(st.lists(st.integers(2, 60), max_size=30), st.integers(1, 8), st.integers(1, 200))
def test_every_sequence_is_in_exactly_one_queue(lengths: list[int], num_queues: int, num_tokens: int) -> None:
    sequences = sequences_of(*lengths)
    shared_out = queues(small_batches(sequences, num_tokens=num_tokens), num_queues=num_queues)
    flat = [sequence for queue in shared_out for batch in queue for sequence in batch]
    assert sorted(lengths_of(flat)) == sorted(lengths)
    assert len(shared_out) <= num_queues
