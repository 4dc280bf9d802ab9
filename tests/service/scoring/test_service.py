"""Where the work of a request runs: nothing large on the event loop, and no one's ids behind another's text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import live_service
from tests.support.loop_meter import loop_meter
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import DEADLINE_SECONDS, until, wait_until
from vigor_client.schemas.scoring import Group, ScoreRequest, ScoreResponse
from vigor_service.engine.interface import BatchResult
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, SequenceScore, TokenSequence
from vigor_service.errors import LoadingError, PayloadTooLargeError
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.metrics import Metrics
from vigor_service.runtime import LoadedModel, Runtime
from vigor_service.scoring.encoded import SMALL_REQUEST_COMPLETIONS
from vigor_service.serving import Serving
from vigor_service.settings import Settings

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MOST_SECONDS = 0.1
"""Processor time after which the loop answers ``/healthz``, whatever is sent."""


class GatedTokenizer:
    """The tiny tokenizer, which waits at a gate before each text."""

    def __init__(self) -> None:
        self._tokenizer: Any = tiny_tokenizer()
        self.gate = threading.Event()
        self.gate.set()
        self.num_waiting = 0

    def encode(self, text: str, **options: Any) -> list[int]:  # noqa: ANN401 - those of the tokenizer
        if not self.gate.is_set():
            self.num_waiting += 1
            assert self.gate.wait(DEADLINE_SECONDS)
        return self._tokenizer.encode(text, **options)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the tokenizer has
        return getattr(self._tokenizer, name)


class LongScorer(FakeScorer):
    """Takes longer sequences, and scores them at once."""

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:  # noqa: ARG002
        return BatchResult([SequenceScore(1, 1.0, 1.0, 1.0, 1.0, 1.0)] * len(sequences))

    @property
    def info(self) -> Any:  # noqa: ANN401 - an EngineInfo
        return replace(super().info, max_sequence_tokens=20_000, vocab_size=320)


@asynccontextmanager
async def _serving(tmp_path: Path, **options: Any) -> AsyncIterator[Serving]:  # noqa: ANN401 - of Settings
    runtime = Runtime(
        Settings(staging_dir=tmp_path, max_batch_tokens=1 << 20, **options),
        lambda: LoadedModel(LongScorer(), None),
        on_load_failure=lambda: None,
        metrics=Metrics(),
        progress=LoadingProgress(),
    )
    runtime.start()
    try:
        await until(lambda: _is_loaded(runtime))
        yield runtime.serving
    finally:
        await runtime.stop()


async def _answer(serving: Serving, request: ScoreRequest) -> str:
    return await serving.scoring.whole(partial(serving.scoring.score, request))


def _is_loaded(runtime: Runtime) -> bool:
    with suppress(LoadingError):
        return runtime.serving is not None
    return False


def test_ids_are_scored_while_texts_are_tokenized(tmp_path: Path) -> None:
    tokenizer = GatedTokenizer()
    texts = [{"prompt": "a", "completions": ["b"]}]
    few = [{"prompt_ids": [1], "completions": [[2]]}]
    many = [{"prompt_ids": [1], "completions": [[2, index] for index in range(4 * SMALL_REQUEST_COMPLETIONS)]}]
    with (
        live_service(tmp_path, load_model=lambda: LoadedModel(FakeScorer(), tokenizer)) as service,  # pyright: ignore[reportArgumentType] - a stand-in
        ThreadPoolExecutor(12) as pool,
    ):
        tokenizer.gate.clear()
        waiting = [pool.submit(service.score, groups=texts) for _ in range(10)]
        wait_until(lambda: tokenizer.num_waiting > 1)
        for groups in (few, many):
            assert service.score(groups=groups).status_code == 200
        assert service.http.get("/healthz").status_code == 200
        assert not any(answer.done() for answer in waiting)
        tokenizer.gate.set()
        assert [answer.result(DEADLINE_SECONDS).status_code for answer in waiting] == [200] * 10


def test_a_template_that_loops_is_refused_and_starves_no_one(tmp_path: Path) -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0].content == 'loop' %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    model = LoadedModel(FakeScorer(), tokenizer)

    def asked(content: str) -> list[dict[str, Any]]:
        return [{"messages": [{"role": "user", "content": content}], "completions": ["b"]}]

    with (
        live_service(tmp_path, load_model=lambda: model, preparation_seconds=0.1) as service,
        ThreadPoolExecutor(12) as pool,
    ):
        loops = [pool.submit(service.score, groups=asked("loop")) for _ in range(6)]
        assert service.score(groups=asked("a")).status_code == 200
        assert service.http.get("/healthz").status_code == 200
        for answer in loops:
            refused = answer.result(DEADLINE_SECONDS)
            assert (refused.status_code, refused.json()["code"]) == (413, "payload_too_large")
            assert "more than 0.1 seconds of processor time" in refused.json()["detail"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_loop_is_free_within_a_tenth_of_a_second_whatever_is_scored(tmp_path: Path, *, is_streamed: bool) -> None:
    completions = [[7, index % 320, index // 320] for index in range(512)]
    group = Group.model_validate({"prompt_ids": [1, 2] * 4096, "completions": completions})
    request = ScoreRequest(groups=[group.model_copy(update={"prompt_ids": [n, *[1, 2] * 4096]}) for n in range(3)])

    async def run() -> tuple[float, int]:
        async with _serving(tmp_path) as serving, loop_meter() as meter:
            if is_streamed:
                lines: list[str] = []
                await serving.scoring.score(request, lines.append)
                return meter.longest_seconds, len(lines)
            answer = ScoreResponse.model_validate_json(await _answer(serving, request))
            return meter.longest_seconds, len(answer.groups)

    seconds, num_groups = asyncio.run(run())
    assert num_groups == 3 + is_streamed
    assert seconds < MOST_SECONDS


async def test_a_request_with_more_tokens_than_the_setting_is_refused(tmp_path: Path) -> None:
    group = Group.model_validate({"prompt_ids": [1, 2], "completions": [[3]] * 4})

    async with _serving(tmp_path, max_request_tokens=12) as serving:
        assert await _answer(serving, ScoreRequest(groups=[group]))
        with pytest.raises(PayloadTooLargeError):
            await _answer(serving, ScoreRequest(groups=[group, group]))
