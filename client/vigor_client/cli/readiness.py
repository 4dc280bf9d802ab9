"""Waiting for a service that is starting, with a line of output whenever its state changes. For the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vigor_client.cli.polling import Clock, poll
from vigor_client.errors import NotReadyError, UnreachableError, VigorError
from vigor_client.schemas.service import Health
from vigor_client.transport.exchange import failure_of

CONNECT_SECONDS = 10.0
"""Maximum time from the start of a service until it listens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a readiness probe: the service's answer, or the error raised instead."""

    health: Health | None
    error: VigorError | None = None

    @property
    def kind(self) -> object:
        """A key that is equal for answers which differ only in their seconds and so need no new line."""
        return type(self.error) if self.health is None else (self.health.reason, self.health.phase)

    @property
    def is_ready(self) -> bool:
        return self.health is not None and self.health.status == "ok"

    @property
    def is_loading(self) -> bool:
        return self.health is not None and self.health.reason == "loading"

    def __str__(self) -> str:
        if self.health is None:
            return str(self.error)
        return self.health.detail or self.health.reason or self.health.status


class ReadinessWait:
    """Polls a service's readiness probe until an answer is accepted.

    ``ask`` sends one probe; ``announce`` is called with a line for the first answer and whenever its kind changes.
    """

    def __init__(
        self,
        ask: Callable[[], Health],
        announce: Callable[[str], None],
        *,
        url: str,
        clock_seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask = ask
        self._announce = announce
        self._url = url
        self._clock = Clock(clock_seconds, sleep)

    def until_ready(self, timeout_seconds: float) -> float:
        """Wait until the service is ready to score; return the seconds waited.

        Raises:
            NotReadyError: the service was not ready in time; gives its last answer.
            VigorError: an answer that waiting does not change, such as one from another server.
        """
        started_seconds = self._clock.seconds()
        answer = self._poll(lambda answer, _: not answer.is_ready, timeout_seconds)
        if not answer.is_ready:
            raise NotReadyError(f"{self._url} is not ready after {timeout_seconds:g} s: {answer}")
        return self._clock.seconds() - started_seconds

    def while_loading(self, timeout_seconds: float) -> None:
        """Wait while the service loads, or does not listen yet; any other answer is left to the next call to report.

        Raises:
            NotReadyError: it still loads after ``timeout_seconds``.
            UnreachableError: it does not listen after ``CONNECT_SECONDS``, or ``timeout_seconds`` if that is less.
        """
        answer = self._poll(_loads_or_comes_up, timeout_seconds)
        if isinstance(answer.error, UnreachableError):
            raise answer.error
        if answer.is_loading:
            raise NotReadyError(f"{self._url} is not ready after {timeout_seconds:g} s: {answer}")

    def _poll(self, must_wait: Callable[[Answer, float], bool], timeout_seconds: float) -> Answer:
        return poll(
            self._probe,
            must_wait,
            lambda answer: self._announce(f"waiting for {self._url}: {answer}"),
            kind=lambda answer: answer.kind,
            timeout_seconds=timeout_seconds,
            clock=self._clock,
        )

    def _probe(self) -> Answer:
        try:
            return Answer(self._ask())
        except VigorError as error:
            if failure_of(error) is None:
                raise
            return Answer(None, error)


def _loads_or_comes_up(answer: Answer, next_seconds: float) -> bool:
    return answer.is_loading or (isinstance(answer.error, UnreachableError) and next_seconds <= CONNECT_SECONDS)
