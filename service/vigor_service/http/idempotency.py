"""Answers by ``Idempotency-Key``: a repeated request gets the first answer, even if newer weights are served now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.problems import FieldError
from vigor_service.errors import InvalidRequestError, invalid_request
from vigor_service.observability.request_record import RequestRecord, current_record

MAX_KEY_CHARACTERS = 255
KEY_PATTERN = f".{{1,{MAX_KEY_CHARACTERS}}}"
MAX_ANSWERS_BYTES = 32 << 20

Put = Callable[[str], None]
Work = Callable[[Put], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Answer:
    """The lines so far for one key, their readers, and the record of the request that began the work."""

    body_checksum: str
    record: RequestRecord
    lines: list[str] = field(default_factory=list[str])
    readers: dict[object, Put] = field(default_factory=dict[object, Put])
    task: asyncio.Task[None] = field(init=False)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.lines))

    def put(self, line: str) -> None:
        self.lines.append(line)
        for put in self.readers.values():
            put(line)


class IdempotentResponses:
    """Stores the latest answers, at most ``max_bytes`` in total; the oldest are dropped first. Errors are not kept."""

    def __init__(self, max_bytes: int = MAX_ANSWERS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._answers: dict[str, _Answer] = {}  # in the order of arrival

    async def once(self, key: str | None, body_checksum: str, work: Work, put: Put) -> None:
        """Pass ``put`` the lines of ``work``, or those of the first request with this key.

        Without a key the work is done each time. Concurrent requests with the same key share one run of the work, which
        is cancelled when the last of them is cancelled.

        Raises:
            InvalidRequestError: the key was used with another body, or is not a valid key.
            What the work raises.
        """
        if key is None:
            await work(put)
            return
        answer = self._find(key, body_checksum) or self._begin(key, body_checksum, work)
        for line in answer.lines:
            put(line)
        reader = object()
        answer.readers[reader] = put
        try:
            await asyncio.shield(answer.task)
            current_record().weight_version = answer.record.weight_version
        finally:
            del answer.readers[reader]
            if not answer.readers and not answer.task.done():
                answer.task.cancel()
                self._forget(key, answer)

    def _find(self, key: str, body_checksum: str) -> _Answer | None:
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise _refuse(f"has {len(key)} characters; give 1 to {MAX_KEY_CHARACTERS}")
        answer = self._answers.get(key)
        if answer is not None and answer.body_checksum != body_checksum:
            raise _refuse("was used before with another body: send a new key with each new request")
        return answer

    def _begin(self, key: str, body_checksum: str, work: Work) -> _Answer:
        answer = self._answers[key] = _Answer(body_checksum, current_record())
        answer.task = asyncio.create_task(work(answer.put))
        answer.task.add_done_callback(lambda _: self._end(key, answer))
        return answer

    def _end(self, key: str, answer: _Answer) -> None:
        if answer.task.cancelled() or answer.task.exception() is not None:
            self._forget(key, answer)
        else:
            self._num_bytes += answer.num_bytes
            self._forget_oldest()

    def _forget(self, key: str, answer: _Answer) -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]

    def _forget_oldest(self) -> None:
        for key, answer in list(self._answers.items()):
            if self._num_bytes <= self._max_bytes:
                break
            if answer.task.done():
                self._num_bytes -= answer.num_bytes
                del self._answers[key]


def _refuse(message: str) -> InvalidRequestError:
    return invalid_request(
        [FieldError(loc=["header", IDEMPOTENCY_HEADER], msg=message)], consequence="nothing was scored"
    )
