"""The retry policy is pure: these tests need no clock and no network."""

import math
from datetime import UTC, datetime

import pytest

from vigor_client.transport.retry import Failure, RetryPolicy, parse_date, parse_retry_after, refusal

LOST = Failure()
NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


def delay(
    failure: Failure,
    *,
    policy: RetryPolicy | None = None,
    repeat_seconds: float = math.inf,
    retries: int = 0,
    elapsed_seconds: float = 0.0,
    jitter: float = 0.5,
) -> float | None:
    return (policy or RetryPolicy()).delay_seconds(
        failure,
        repeat_seconds=repeat_seconds,
        retries=retries,
        elapsed_seconds=elapsed_seconds,
        jitter=jitter,
    )


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(max_retries=20, first_delay_seconds=0.5, longest_delay_seconds=4.0)
    assert [delay(LOST, policy=policy, retries=n, jitter=1.0) for n in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_jitter_takes_a_share_of_the_whole_delay() -> None:
    assert delay(LOST, jitter=0.0) == 0.0
    assert delay(LOST, jitter=0.25) == 0.125


def test_a_huge_number_of_retries_does_not_overflow() -> None:
    policy = RetryPolicy(max_retries=10**9, longest_delay_seconds=30.0)
    assert delay(LOST, policy=policy, retries=10**6, jitter=1.0) == 30.0


def test_retry_after_is_waited_for_in_full_with_the_jitter_on_top() -> None:
    assert delay(Failure(retry_after_seconds=7.0), jitter=0.5) == 7.25


def test_a_retry_after_beyond_the_time_left_gives_up_instead_of_coming_early() -> None:
    assert delay(Failure(retry_after_seconds=3600.0)) is None


def test_tries_are_bounded() -> None:
    policy = RetryPolicy(max_retries=2)
    assert [delay(LOST, policy=policy, retries=n) is None for n in range(4)] == [False, False, True, True]


def test_time_is_bounded() -> None:
    policy = RetryPolicy(max_retries=100, total_seconds=60.0)
    assert delay(LOST, policy=policy, elapsed_seconds=59.0, jitter=1.0) == 0.5
    assert delay(LOST, policy=policy, elapsed_seconds=60.0, jitter=1.0) is None


def test_a_call_may_bound_its_own_time() -> None:
    assert delay(LOST, repeat_seconds=5.0, elapsed_seconds=4.0, jitter=1.0) == 0.5
    assert delay(LOST, repeat_seconds=5.0, elapsed_seconds=5.0, jitter=0.0) is None
    assert delay(LOST, repeat_seconds=0.0, jitter=0.0) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 499, 500, 501, 504, 507])
def test_these_statuses_end_the_call(status: int) -> None:
    assert refusal(status, "some_code") is None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "queue_full"),
        (503, "loading"),
        (503, "draining"),
        (503, "weights_applying"),
        (429, None),
        (502, None),
        (503, None),
    ],
)
def test_these_refusals_pass(status: int, code: str | None) -> None:
    assert refusal(status, code, retry_after_seconds=2.0) == Failure(retry_after_seconds=2.0)


def test_a_conflict_is_tried_again_where_the_service_says_when_and_only_there() -> None:
    assert refusal(409, "update_state", retry_after_seconds=1.0) == Failure(retry_after_seconds=1.0)
    assert refusal(409, "update_state") is None


def test_a_proxy_that_lost_patience_may_be_asked_again_and_a_deadline_of_the_service_may_not() -> None:
    assert refusal(504, None) == Failure()
    assert refusal(504, "deadline_exceeded") is None


def test_poisoned_weights_are_not_cured_by_waiting() -> None:
    assert refusal(503, "weights_poisoned", retry_after_seconds=1.0) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30.0),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
        ("Wed Oct 21 07:28:30 2026", 30.0),
        ("Wed, 21 Oct 2026 09:29:00 +0200", 60.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Wed, 21 Oct 99999999 07:27:00 GMT", 0.0),
        ("Wed, 99 Oct 2026 07:27:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float) -> None:
    assert parse_retry_after(header, now=NOW) == seconds


def test_a_date_that_cannot_be_read_is_none() -> None:
    assert parse_date(None) is parse_date("yesterday") is None


def test_a_negative_number_of_retries_is_refused() -> None:
    with pytest.raises(ValueError, match="max_retries is -1"):
        RetryPolicy(max_retries=-1)
