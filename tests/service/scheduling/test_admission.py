import pytest

from vigor_service.errors import QueueFullError
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.admission import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, Admission


def _admission(*, max_tokens: int = 100, max_requests: int = 10) -> tuple[Admission, Metrics]:
    metrics = Metrics()
    return Admission(max_tokens=max_tokens, max_requests=max_requests, metrics=metrics), metrics


def _queued(metrics: Metrics) -> tuple[float | None, float | None]:
    value = metrics.registry.get_sample_value
    return value("vigor_queued_requests"), value("vigor_queued_tokens")


def test_the_gauges_follow_who_is_there() -> None:
    admission, metrics = _admission()
    with admission.hold(60), admission.hold(40):
        assert _queued(metrics) == (2, 100)
    assert _queued(metrics) == (0, 0)


def test_a_place_is_given_back_when_the_request_fails() -> None:
    admission, metrics = _admission()
    with pytest.raises(KeyError), admission.hold(60):
        raise KeyError
    assert _queued(metrics) == (0, 0)


def test_too_many_tokens_are_refused() -> None:
    admission, _ = _admission(max_tokens=100)
    with admission.hold(60), pytest.raises(QueueFullError), admission.hold(41):
        pass


def test_too_many_requests_are_refused() -> None:
    admission, _ = _admission(max_requests=1)
    with admission.hold(0), pytest.raises(QueueFullError), admission.hold(0):
        pass


def test_a_request_larger_than_the_queue_gets_in_when_nobody_is_there() -> None:
    admission, metrics = _admission(max_tokens=100)
    with admission.hold(1000):
        assert _queued(metrics) == (1, 1000)


@pytest.mark.parametrize(
    ("tokens_per_second", "expected_seconds"),
    [(None, MIN_RETRY_SECONDS), (10.0, 8.0), (1e6, MIN_RETRY_SECONDS), (0.1, MAX_RETRY_SECONDS)],
)
def test_retry_after_comes_from_the_measured_rate(tokens_per_second: float | None, expected_seconds: float) -> None:
    admission, _ = _admission(max_tokens=100)
    if tokens_per_second is not None:
        admission.observe_batch(1000, 1000 / tokens_per_second)
    with admission.hold(80), pytest.raises(QueueFullError) as refused, admission.hold(80):
        pass
    assert refused.value.retry_after_seconds == pytest.approx(expected_seconds)
