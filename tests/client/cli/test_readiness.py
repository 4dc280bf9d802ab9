"""Waiting for a service that starts: what is said, and when it ends. With a clock that only sleeping moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import pytest

from vigor_client.cli.polling import PAUSE_SECONDS
from vigor_client.cli.readiness import CONNECT_SECONDS, ReadinessWait
from vigor_client.errors import AnswerTimeoutError, NotReadyError, UnexpectedAnswerError, UnreachableError
from vigor_client.schemas.service import Health

URL = "http://here"
READY = Health(status="ok")
REFUSED = UnreachableError("cannot reach the service: refused", request_id="r")
SILENT = AnswerTimeoutError("no answer within 5 s", request_id="r")
OTHER_SERVER = UnexpectedAnswerError("a page", status=200, request_id="r", retry_after_seconds=0.0)
DRAINING = Health(status="unavailable", reason="draining")


def loading(phase: str, seconds: int = 0) -> Health:
    return Health(status="unavailable", reason="loading", phase=phase, detail=f"{phase} ({seconds} s so far)")


class Scene:
    """A service that gives these answers one after the other, the last one again and again."""

    def __init__(self, *answers: Health | Exception) -> None:
        self.lines: list[str] = []
        self.now_seconds = 0.0
        self.num_asked = 0
        self._answers: Iterator[Health | Exception] = _last_again(answers)
        self.wait = ReadinessWait(
            self._ask, self.lines.append, url=URL, clock_seconds=lambda: self.now_seconds, sleep=self._sleep
        )

    def _ask(self) -> Health:
        self.num_asked += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _sleep(self, seconds: float) -> None:
        self.now_seconds += seconds


def _last_again(answers: Iterable[Health | Exception]) -> Iterator[Health | Exception]:
    *first, last = answers
    return chain(first, repeat(last))


def until_ready(scene: Scene) -> None:
    scene.wait.until_ready(60.0)


def while_loading(scene: Scene) -> None:
    scene.wait.while_loading(60.0)


@pytest.mark.parametrize("wait", [until_ready, while_loading])
def test_a_ready_service_is_asked_once_and_nothing_is_said(wait: Callable[[Scene], None]) -> None:
    scene = Scene(READY)
    wait(scene)
    assert (scene.num_asked, scene.lines, scene.now_seconds) == (1, [], 0.0)


@pytest.mark.parametrize("wait", [until_ready, while_loading])
def test_each_thing_that_is_waited_for_is_said_once(wait: Callable[[Scene], None]) -> None:
    scene = Scene(REFUSED, REFUSED, loading("reading", 1), loading("reading", 2), loading("checking"), READY)
    wait(scene)
    assert scene.lines == [
        "waiting for http://here: cannot reach the service: refused",
        "waiting for http://here: reading (1 s so far)",
        "waiting for http://here: checking (0 s so far)",
    ]
    assert scene.now_seconds == 5 * PAUSE_SECONDS


def test_the_seconds_that_it_took_are_returned() -> None:
    assert Scene(DRAINING, SILENT, READY).wait.until_ready(60.0) == 2 * PAUSE_SECONDS


@pytest.mark.parametrize("answer", [REFUSED, SILENT, DRAINING, loading("reading")])
def test_waiting_for_readiness_ends_in_time_and_says_what_was_answered_last(answer: Health | Exception) -> None:
    scene = Scene(answer)
    with pytest.raises(NotReadyError, match=r"^http://here is not ready after 7 s: \w"):
        scene.wait.until_ready(7.0)
    assert 7.0 - PAUSE_SECONDS <= scene.now_seconds <= 7.0


def test_waiting_while_it_loads_ends_in_time() -> None:
    scene = Scene(REFUSED, loading("reading"))
    with pytest.raises(NotReadyError, match=r"is not ready after 30 s: reading"):
        scene.wait.while_loading(30.0)
    assert 30.0 - PAUSE_SECONDS <= scene.now_seconds <= 30.0


def test_a_service_that_does_not_listen_is_not_waited_for_as_one_that_loads() -> None:
    scene = Scene(REFUSED)
    with pytest.raises(UnreachableError):
        scene.wait.while_loading(600.0)
    assert CONNECT_SECONDS - PAUSE_SECONDS <= scene.now_seconds <= CONNECT_SECONDS


@pytest.mark.parametrize("answer", [SILENT, DRAINING])
def test_what_is_not_loading_is_left_to_the_call_itself(answer: Health | Exception) -> None:
    scene = Scene(answer)
    scene.wait.while_loading(600.0)
    assert (scene.num_asked, scene.lines) == (1, [])


@pytest.mark.parametrize("wait", [until_ready, while_loading])
def test_another_server_is_not_waited_for(wait: Callable[[Scene], None]) -> None:
    scene = Scene(OTHER_SERVER)
    with pytest.raises(UnexpectedAnswerError):
        wait(scene)
    assert scene.num_asked == 1


def test_no_time_at_all_means_one_question() -> None:
    scene = Scene(loading("reading"))
    with pytest.raises(NotReadyError):
        scene.wait.while_loading(0.0)
    assert (scene.num_asked, scene.lines) == (1, [])
