"""Load of every kind for one service: scores, refusals, clients that leave, weights, until it is told to end."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import torch

from tests.support.pushing import push

PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 0.5
MAX_QUEUED_TOKENS = 2048
KINDS = {("/v1/score", code) for code in (200, 409, 422, 429)} | {("/v1/score/sample", code) for code in (200, 499)}
SOMETIMES = {("/v1/score/sample", 429)}
"""Answers that come where a large request fills the queue at the right moment."""


class Load:
    """For a service with MAX_QUEUED_TOKENS. ``answers`` counts by route and status, in time all of KINDS."""

    def __init__(self, http: httpx.Client, tensors: Mapping[str, torch.Tensor]) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self._http = http
        self._tensors = tensors
        self.version = 0
        self._source = random.Random(0)
        self._end = threading.Event()
        self._counting = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send until the block ends; an error of a sender is raised then."""
        senders: list[Callable[[], None]] = [self._score, self._refused, self._sample, self._leave, self._publish]
        with ThreadPoolExecutor(len(senders)) as pool:
            sending = [pool.submit(self._repeat, sender) for sender in senders]
            try:
                yield
            finally:
                self._end.set()
        for sender in sending:
            sender.result()

    def _repeat(self, send: Callable[[], None]) -> None:
        while not self._end.wait(PAUSE_SECONDS):
            send()

    def _post(self, route: str, body: Mapping[str, Any]) -> None:
        self._count(route, self._http.post(route, json=body).status_code)

    def _count(self, route: str, status_code: int) -> None:
        with self._counting:
            self.answers[route, status_code] += 1

    def _score(self) -> None:
        """Completions of all lengths, one of them twice, one without tokens, one that was cut off."""
        group = self._group(6)
        group["completions"] += [group["completions"][0], [], {"ids": [5, 6], "finish_reason": "length"}]
        self._post("/v1/score", {"groups": [group], "truncated": "worst"})

    def _refused(self) -> None:
        """Other weights than those that serve, nothing at all, and more than is admitted beside another request."""
        self._post("/v1/score", {"groups": [self._group(2)], "weight_version": 10**6})
        self._post("/v1/score", {"groups": []})
        self._post("/v1/score", {"groups": [self._group(200)]})

    def _sample(self) -> None:
        """A group of one that comes as a sample."""
        whole = {**self._group(1), "group": f"group-{self._source.random()}", "group_size": 1, "index": 0}
        (whole["completion"],) = whole.pop("completions")
        self._post("/v1/score/sample", whole)

    def _leave(self) -> None:
        """A caller that does not wait for the other sample of its group."""
        route, body = "/v1/score/sample", {"prompt_ids": [1], "completion": [2], "group": "never whole", "index": 0}
        try:
            status_code = self._http.post(route, json={**body, "group_size": 2}, timeout=PATIENCE_SECONDS).status_code
        except httpx.ReadTimeout:
            status_code = 499
        self._count(route, status_code)

    def _publish(self) -> None:
        """New weights, and a group that names them; only here, for no others are published until it is answered."""
        self.version += 1
        answer = push(self._http, self._tensors, version=self.version)
        assert answer.status_code == 200, answer.text
        self._post("/v1/score", {"groups": [self._group(2)], "weight_version": self.version, "wait_seconds": 5})

    def _group(self, num_completions: int) -> dict[str, Any]:
        def ids(shortest: int, longest: int) -> list[int]:
            return self._source.choices(range(256), k=self._source.randint(shortest, longest))

        return {"prompt_ids": ids(4, 8), "completions": [ids(2, 40) for _ in range(num_completions)]}
