"""Answers by ``Idempotency-Key``: a request that is sent again gets the first answer, also under newer weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from vigor_client.schemas import FieldError
from vigor_service.errors import InvalidRequestError, invalid_request
from vigor_service.request_record import RequestRecord, current_record

HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255
MAX_ANSWERS_BYTES = 32 << 20

Put = Callable[[str], None]


@dataclass(slots=True)
class _Answer:
    """What one key stands for, the record of who sent it first, and how many wait for it."""

    body_checksum: str
    task: asyncio.Task[str]
    record: RequestRecord
    num_waiting: int = 0


class Answers:
    """The latest answers, up to ``max_bytes`` of them; the oldest go first. Failures are not kept."""

    def __init__(self, max_bytes: int = MAX_ANSWERS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._answers: dict[str, _Answer] = {}  # in the order of arrival

    async def once(self, key: str | None, body_checksum: str, work: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """Return what ``work`` returns, or what it returned when this key came first; without a key, always anew.

        Equal requests at the same time wait for one piece of work, which ends when the last of them is cancelled.

        Raises:
            InvalidRequestError: the key came with another body, or is no key.
        """
        if key is None:
            return await work()
        answer = self._find(key, body_checksum) or self._begin(key, body_checksum, work)
        answer.num_waiting += 1
        try:
            text = await asyncio.shield(answer.task)
            current_record().weight_version = answer.record.weight_version
            return text
        finally:
            answer.num_waiting -= 1
            if not answer.num_waiting and not answer.task.done():
                answer.task.cancel()
                self._forget(key, answer)

    async def stream(
        self, key: str | None, body_checksum: str, work: Callable[[Put], Coroutine[Any, Any, None]], put: Put
    ) -> None:
        """As ``once``, of an answer in lines: ``put`` gets each when it is there, an earlier answer all together."""
        if key is None:
            await work(put)
            return
        lines: list[str] = []

        async def collect() -> str:
            def put_both(line: str) -> None:
                lines.append(line)
                put(line)

            await work(put_both)
            return "\n".join(lines)

        answer = await self.once(key, body_checksum, collect)
        if not lines:  # somebody else's
            for line in answer.split("\n"):
                put(line)

    def _find(self, key: str, body_checksum: str) -> _Answer | None:
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise _refuse(f"has {len(key)} characters; give 1 to {MAX_KEY_CHARACTERS}")
        answer = self._answers.get(key)
        if answer is not None and answer.body_checksum != body_checksum:
            raise _refuse("came before, with another body; give each request a key of its own")
        return answer

    def _begin(self, key: str, body_checksum: str, work: Callable[[], Coroutine[Any, Any, str]]) -> _Answer:
        answer = self._answers[key] = _Answer(body_checksum, asyncio.create_task(work()), current_record())
        answer.task.add_done_callback(lambda _: self._end(key, answer))
        return answer

    def _end(self, key: str, answer: _Answer) -> None:
        if answer.task.cancelled() or answer.task.exception() is not None:
            self._forget(key, answer)
        else:
            self._num_bytes += len(answer.task.result())
            self._forget_oldest()

    def _forget(self, key: str, answer: _Answer) -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]

    def _forget_oldest(self) -> None:
        for key, answer in list(self._answers.items()):
            if self._num_bytes <= self._max_bytes:
                break
            if answer.task.done():
                self._num_bytes -= len(answer.task.result())
                del self._answers[key]


def _refuse(message: str) -> InvalidRequestError:
    return invalid_request([FieldError(loc=["header", HEADER], msg=message)], consequence="nothing was scored")
