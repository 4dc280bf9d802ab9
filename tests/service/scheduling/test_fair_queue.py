import logging

import pytest

from tests.support.counting import lines_run
from vigor_service.engine.sequences import TokenSequence
from vigor_service.scheduling import fair_queue
from vigor_service.scheduling.fair_queue import MOST_PASSED_OVER, BatchBudget, Pool


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


def test_an_owner_may_wait_for_more_sequences_later() -> None:
    pool = Pool[str]()
    for lengths in ([4, 5], [5, 6], []):
        pool.add("a", [_sequence(length) for length in lengths])
    assert _lengths(pool.take_batch(9)) == [5, 4]
    pool.add("a", [_sequence(7)])
    assert list(pool.take_batch(100).items()) == [(_sequence(6), ["a"]), (_sequence(7), ["a"])]
    assert len(pool) == 0


def test_removing_an_unknown_owner_does_nothing() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(4)])
    pool.remove("b")
    assert len(pool) == 1


LINES_PER_SEQUENCE = 50


def _lines_of_a_batch(num_owners: int, lengths: list[int], *, share_a_prompt: bool = False) -> tuple[int, int]:
    """Return the lines that taking a batch of 100 tokens runs, and its sequences; owners wait for these lengths."""
    pool = Pool[int]()
    for owner in range(num_owners):
        markers = [0 if share_a_prompt else owner * len(lengths) + index for index in range(len(lengths))]
        pool.add(owner, [_sequence(length, marker) for length, marker in zip(lengths, markers, strict=True)])
    pool.take_batch(100)  # after a change of the budget the turns are sorted anew
    batches: list[int] = []
    lines = lines_run(lambda: batches.append(len(pool.take_batch(100))), within=fair_queue)
    return lines, batches[0]


@pytest.mark.parametrize(
    ("num_owners", "lengths"),
    [
        pytest.param(1, [5] * 8_000, id="one huge request"),
        pytest.param(800, [5] * 10, id="many requests"),
        pytest.param(1, [60] * 8_000, id="nothing fits beside the first"),
        pytest.param(800, [60] * 10, id="nothing of anybody fits beside the first"),
        pytest.param(800, [60] * 9 + [41], id="each could fill the rest with its last one"),
    ],
)
def test_a_batch_costs_what_is_in_it_however_much_waits(num_owners: int, lengths: list[int]) -> None:
    lines, num_sequences = _lines_of_a_batch(num_owners, lengths)
    assert num_sequences >= 1
    assert lines <= LINES_PER_SEQUENCE * (num_sequences + MOST_PASSED_OVER)
    fewer_lines, _ = _lines_of_a_batch(max(1, num_owners // 2), lengths[: max(10, len(lengths) // 2)])
    assert lines <= 1.1 * fewer_lines + 100


def test_equal_sequences_of_many_owners_cost_each_owner_once() -> None:
    lines, num_sequences = _lines_of_a_batch(500, [90, 80], share_a_prompt=True)
    assert num_sequences == 1
    assert lines <= LINES_PER_SEQUENCE + 20 * 500


def test_what_was_passed_over_keeps_its_place() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(60, marker) for marker in range(4)] + [_sequence(40, 9)])
    assert _lengths(pool.take_batch(100)) == [60, 40]
    assert [next(iter(pool.take_batch(60))).prompt_ids for _ in range(3)] == [(1,), (2,), (3,)]
    assert len(pool) == 0


def test_an_owner_that_leaves_takes_along_what_was_passed_over() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(60, marker) for marker in range(4)])
    pool.add("b", [_sequence(60, 3), _sequence(60, 4)])
    pool.take_batch(100)
    pool.remove("a")
    assert [list(pool.take_batch(60).items()) for _ in range(2)] == [
        [(_sequence(60, 3), ["b"])],
        [(_sequence(60, 4), ["b"])],
    ]
    assert len(pool) == 0


def test_a_batch_gives_up_looking_for_what_fits_after_a_bounded_number() -> None:
    pool = Pool[str]()
    pool.add("a", [_sequence(60, marker) for marker in range(MOST_PASSED_OVER + 1)] + [_sequence(40, 9999)])
    assert _lengths(pool.take_batch(100)) == [60]
    while pool:
        assert sum(_lengths(pool.take_batch(100))) <= 100


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


def test_only_the_first_lowering_is_a_warning(text_log: pytest.LogCaptureFixture) -> None:
    budget = BatchBudget(1000)
    with text_log.at_level(logging.INFO):
        for fitting_tokens in (800, 600):
            budget.lower(fitting_tokens)
    assert [record.levelno for record in text_log.records] == [logging.WARNING, logging.INFO]
    assert "max_batch_tokens=800 before=1000" in text_log.text
