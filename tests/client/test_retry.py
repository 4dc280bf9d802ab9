"""The retry policy is pure: these tests need no clock and no network."""

import pytest

from vigor_client.retry import Failure, Repeat, RetryPolicy, parse_retry_after, refusal

LOST = Failure(acted_on=True)
NOT_RECEIVED = Failure(acted_on=False)


def delay(
    failure: Failure,
    *,
    policy: RetryPolicy | None = None,
    repeat: Repeat = Repeat.ALWAYS,
    retries: int = 0,
    elapsed_seconds: float = 0.0,
    jitter: float = 0.5,
) -> float | None:
    return (policy or RetryPolicy()).delay_seconds(
        failure, repeat=repeat, retries=retries, elapsed_seconds=elapsed_seconds, jitter=jitter
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
    assert delay(Failure(acted_on=False, retry_after_seconds=7.0), jitter=0.5) == 7.25


def test_a_retry_after_beyond_the_time_left_gives_up_instead_of_coming_early() -> None:
    assert delay(Failure(acted_on=False, retry_after_seconds=3600.0)) is None


def test_tries_are_bounded() -> None:
    policy = RetryPolicy(max_retries=2)
    assert [delay(LOST, policy=policy, retries=n) is None for n in range(4)] == [False, False, True, True]


def test_time_is_bounded() -> None:
    policy = RetryPolicy(max_retries=100, total_seconds=60.0)
    assert delay(LOST, policy=policy, elapsed_seconds=59.0, jitter=1.0) == 0.5
    assert delay(LOST, policy=policy, elapsed_seconds=60.0, jitter=1.0) is None


@pytest.mark.parametrize(
    ("repeat", "failure", "tried_again"),
    [
        (Repeat.ALWAYS, LOST, True),
        (Repeat.ALWAYS, NOT_RECEIVED, True),
        (Repeat.IF_NOT_RECEIVED, LOST, False),
        (Repeat.IF_NOT_RECEIVED, NOT_RECEIVED, True),
        (Repeat.NEVER, LOST, False),
        (Repeat.NEVER, NOT_RECEIVED, False),
    ],
)
def test_what_is_not_safe_to_repeat_is_not_repeated(repeat: Repeat, failure: Failure, tried_again: bool) -> None:
    assert (delay(failure, repeat=repeat) is not None) == tried_again


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 499, 500, 501, 504, 507])
def test_these_statuses_end_the_call(status: int) -> None:
    assert refusal(status, "some_code") is None


@pytest.mark.parametrize(
    ("status", "code"), [(429, "queue_full"), (503, "loading"), (503, "draining"), (503, "weights_applying")]
)
def test_a_refusal_at_the_door_was_certainly_not_acted_on(status: int, code: str) -> None:
    assert refusal(status, code, retry_after_seconds=2.0) == Failure(acted_on=False, retry_after_seconds=2.0)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_proxys_refusal_may_hide_a_request_that_was_acted_on(status: int) -> None:
    assert refusal(status, None) == Failure(acted_on=True)


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
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds(header: str | None, seconds: float) -> None:
    assert parse_retry_after(header) == seconds


def test_a_negative_number_of_retries_is_refused() -> None:
    with pytest.raises(ValueError, match="max_retries is -1"):
        RetryPolicy(max_retries=-1)
