import logging

import pytest

from vigor_service.batching import BatchBudget, Pool
from vigor_service.engine.sequences import TokenSequence


def _sequence(num_tokens: int, marker: int = 0) -> TokenSequence:
    return TokenSequence((marker,), (0,) * (num_tokens - 1))


def _lengths(batch: dict[TokenSequence, list[str]]) -> list[int]:
    return [sequence.num_tokens for sequence in batch]


def test_the_longest_sequence_leads_and_the_next_longest_fill_the_batch() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(length) for length in (3, 9, 5, 8)])
    assert _lengths(pool.take_batch(18)) == [9, 8]
    assert _lengths(pool.take_batch(8)) == [5, 3]
    assert len(pool) == 0


def test_an_owner_may_add_sequences_in_parts() -> None:
    pool = Pool[str]()
    for lengths in ((3, 9), (5, 9), (8,)):
        pool.add("a", [_sequence(length) for length in lengths])
    pool.add("b", [_sequence(5)])
    assert len(pool) == 4
    taken = pool.take_batch(100)
    assert sorted(_lengths(taken)) == [3, 5, 8, 9]
    assert taken[_sequence(9)] == ["a"]
    assert len(pool) == 0


def test_the_lengths_of_a_batch_add_up_to_its_budget_at_most() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(length, length) for length in range(2, 40)])
    while pool:
        batch = pool.take_batch(64)
        assert sum(_lengths(batch)) <= 64


def test_what_does_not_fit_any_more_leaves_its_room_to_shorter_ones() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(length) for length in (3, 9, 5, 8)])
    assert _lengths(pool.take_batch(20)) == [9, 8, 3]


def test_sequences_with_the_leaders_prompt_come_before_longer_ones() -> None:
    pool = Pool[str]()
    pool.add("old", [_sequence(9, 1), _sequence(7, 2), _sequence(4, 1)])
    pool.add("new", [_sequence(5, 1)])
    assert list(pool.take_batch(18)) == [_sequence(9, 1), _sequence(4, 1), _sequence(5, 1)]


def test_a_sequence_longer_than_the_budget_runs_alone() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(100), _sequence(4)])
    assert _lengths(pool.take_batch(10)) == [100]
    assert _lengths(pool.take_batch(10)) == [4]


def test_short_sequences_of_others_fill_the_batch_of_the_oldest() -> None:
    pool = Pool[str]()
    pool.add("old", [_sequence(5)])
    pool.add("new", [_sequence(4), _sequence(9)])
    batch = pool.take_batch(10)
    assert list(batch.values()) == [["old"], ["new"]]
    assert _lengths(batch) == [5, 4]


def test_a_stream_of_long_newcomers_does_not_starve_a_short_old_one() -> None:
    pool = Pool[str]()
    pool.add("old", [_sequence(2)])
    pool.add("new", [_sequence(50)])
    assert list(pool.take_batch(50).values()) == [["old"]]


def test_small_requests_behind_a_huge_one_are_in_the_next_batch_with_it() -> None:
    pool = Pool[str]()
    pool.add("huge", [_sequence(length, length) for length in range(50, 100)])
    pool.take_batch(400)
    for number in range(10):
        pool.add(f"small {number}", [_sequence(20, 200 + number)])
    owners = [owner for owners in pool.take_batch(400).values() for owner in owners]
    assert sorted(set(owners)) == ["huge", *(f"small {number}" for number in range(10))]


def test_two_large_requests_advance_at_the_same_rate_whenever_they_came() -> None:
    pool = Pool[str]()
    pool.add("old", [_sequence(10, marker) for marker in range(200)])
    pool.take_batch(300)
    pool.add("new", [_sequence(10, 200 + marker) for marker in range(200)])
    taken: list[str] = []
    for _ in range(15):
        taken += [owner for owners in pool.take_batch(200).values() for owner in owners]
        assert abs(taken.count("old") - taken.count("new")) <= 200 / 10 * 2  # the turn of either, begun or done


def test_requests_of_a_batch_or_less_finish_one_after_the_other() -> None:
    pool = Pool[str]()
    for number in range(4):
        pool.add(f"request {number}", [_sequence(10, 8 * number + marker) for marker in range(8)])
    finished = [len({owner for owners in pool.take_batch(100).values() for owner in owners}) for _ in range(4)]
    assert finished == [2, 2, 2, 1]


def test_who_had_a_turn_gets_the_next_though_newcomers_never_end() -> None:
    pool = Pool[str]()
    pool.add("old", [_sequence(10, marker) for marker in range(40)])
    pool.take_batch(20)
    for number in range(300):  # each fills a batch
        pool.add(f"new {number}", [_sequence(10, 100 + 2 * number), _sequence(10, 101 + 2 * number)])
        pool.take_batch(20)
    assert "old" not in [owner for owners in pool.take_batch(10**6).values() for owner in owners]


def test_equal_sequences_of_two_owners_are_taken_once() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(4)])
    pool.add("b", [_sequence(4)])
    assert list(pool.take_batch(100).values()) == [["a", "b"]]
    assert len(pool) == 0


def test_a_removed_owner_takes_along_only_what_nobody_else_waits_for() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(4), _sequence(5)])
    pool.add("b", [_sequence(4)])
    pool.remove("a")
    assert list(pool.take_batch(100).items()) == [(_sequence(4), ["b"])]


def test_removing_an_unknown_owner_does_nothing() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(4)])
    pool.remove("b")
    assert len(pool) == 1


def test_a_budget_is_lowered_to_what_did_fit_but_at_once_only_to_half() -> None:
    budget = BatchBudget(1000)
    budget.lower(700)
    assert budget.max_tokens == 700
    budget.lower(10)
    assert budget.max_tokens == 350


def test_a_budget_is_never_raised_and_never_lowered_to_nothing() -> None:
    budget = BatchBudget(160)
    budget.lower(500)
    assert budget.max_tokens == 160
    for _ in range(20):
        budget.lower(0)
    assert budget.max_tokens == 10


def test_only_the_first_lowering_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    budget = BatchBudget(1000)
    with caplog.at_level(logging.INFO):
        for fitting_tokens in (800, 600):
            budget.lower(fitting_tokens)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert "max_batch_tokens=800 before=1000" in caplog.text
