"""Processes that are killed under load: callers of samples, and the service under callers that try again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.service_process import STOP_SECONDS, ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import VigorClient
from vigor_client.schemas.scoring import GroupScore, ScoreResponse

Sample = dict[str, object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def prompt(number: int) -> list[int]:
    return [number + 1, 2, 3]


def completions(number: int, length: int = 2) -> list[list[int]]:
    return [[index + 3, number + 3] * (length // 2) for index in range(8)]


# ----------------------------------------------------------------------------------------------- killed callers

NUM_GROUPS = 25
GROUP_TIMEOUT_SECONDS = 20.0
LOST = "q-0"
"""The group whose last sample the killed process did not send."""


def samples_of(number: int) -> list[Sample]:
    group = {"group": f"q-{number}", "group_size": 8, "prompt_ids": prompt(number)}
    return [{**group, "index": index, "completion": ids} for index, ids in enumerate(completions(number))]


@contextmanager
def callers(service: ServiceProcess, samples: Sequence[Sample]) -> Iterator[subprocess.Popen[str]]:
    """A process with a caller for each sample; it is killed with the block."""
    command = [sys.executable, "-m", "tests.support.sample_callers", str(service.http.base_url)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write("".join(json.dumps(sample) + "\n" for sample in samples))
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


def answers(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert process.stdout
    return [json.loads(line) for line in process.stdout]


@pytest.mark.slow
def test_two_hundred_callers_of_whom_a_process_is_killed(tmp_path: Path, checkpoint: Path) -> None:
    samples = [sample for number in range(NUM_GROUPS) for sample in samples_of(number)]
    random.Random(0).shuffle(samples)
    doomed = [sample for sample in samples if sample["index"] == 7 and sample["group"] in ("q-1", "q-2", "q-3")]
    unsent = [sample for sample in samples if sample["index"] == 7 and sample["group"] == LOST]
    living = [sample for sample in samples if sample not in doomed + unsent]
    given = ("--model", str(checkpoint), "--group-timeout-seconds", str(GROUP_TIMEOUT_SECONDS))
    with service_process(tmp_path, *given) as service, callers(service, living[::2]) as one:
        wait_until(lambda: service.metrics()["vigor_gathering_samples"] == len(living[::2]))
        with callers(service, doomed):  # others of their groups wait, so that what they sent stays
            wait_until(lambda: service.metrics()["vigor_gathering_samples"] == len(living[::2]) + len(doomed))
        impatient = living[::2][::5]
        wait_until(lambda: service.metrics()["vigor_disconnects_total"] >= len(impatient) + len(doomed))
        with callers(service, living[1::2]) as other:
            answered = answers(one) + answers(other)
        assert len(answered) == len(living) == 8 * NUM_GROUPS - 4
        _assert_lost_in_time([answer for answer in answered if answer["sent"]["group"] == LOST])
        _assert_ranked_as_whole_groups(service, [answer for answer in answered if answer["sent"]["group"] != LOST])
        assert service.metrics()["vigor_gathering_samples"] == service.metrics()["vigor_queued_requests"] == 0


def _assert_lost_in_time(lost: Sequence[dict[str, Any]]) -> None:
    assert [(answer["status"], answer["body"]["code"]) for answer in lost] == [(504, "group_incomplete")] * 7
    assert {answer["body"]["came"] for answer in lost} == {7}
    assert max(answer["seconds"] for answer in lost) < GROUP_TIMEOUT_SECONDS + 5


def _assert_ranked_as_whole_groups(service: ServiceProcess, answered: Sequence[dict[str, Any]]) -> None:
    groups = [{"prompt_ids": prompt(number), "completions": completions(number)} for number in range(NUM_GROUPS)]
    whole = ScoreResponse.model_validate(service.http.post("/v1/score", json={"groups": groups}).json())
    for answer in answered:
        assert answer["status"] == 200, answer
        number = int(answer["sent"]["group"].removeprefix("q-"))
        expected = whole.groups[number].completions[answer["sent"]["index"]]
        completion = answer["body"]["completion"]
        assert (completion["rank"], completion["reward"]) == (expected.rank, expected.reward)
        assert completion["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-5)


# ----------------------------------------------------------------------------------------------- killed service

NUM_REQUESTS = 60
NUM_CLIENTS = 3
MAX_STARTS = 10
LENGTH = 80


def request(number: int) -> list[dict[str, object]]:
    return [{"id": f"r-{number}", "prompt_ids": prompt(number), "completions": completions(number, LENGTH)}]


def score_share(url: str, digest: str, numbers: Sequence[int], results: list[GroupScore]) -> None:
    """Add the groups of these requests to the results, one request after another."""
    with VigorClient(url, timeout_seconds=30, max_retries=30) as client:
        for number in numbers:
            results.extend(client.score(request(number), weight_digest=digest).groups)


def score_file(url: str, source: Path, out: Path) -> None:
    """Run `vigor score` again and again until it has come to its end, as a shell's loop would."""
    command = [sys.executable, "-m", "vigor_client.cli.main", "score", str(source), "--out", str(out), "--resume"]
    for _ in range(MAX_STARTS):
        ended = subprocess.run(
            [*command, "--url", url, "--groups-per-request", "1"], capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in ended.stderr
        if ended.returncode == 0:
            return
    raise AssertionError(f"not complete after {MAX_STARTS} starts")


@pytest.mark.slow
def test_a_service_that_is_killed_and_comes_back_costs_its_callers_no_answer_and_gives_none_twice(
    tmp_path: Path, checkpoint: Path
) -> None:
    source, out = tmp_path / "groups.jsonl", tmp_path / "scores.jsonl"
    source.write_text("".join(json.dumps(request(number)[0]) + "\n" for number in range(NUM_REQUESTS)))
    results: list[GroupScore] = []
    given = ("--model", str(checkpoint), "--score-cache-entries", "0")
    with ThreadPoolExecutor(NUM_CLIENTS + 1) as pool:
        with service_process(tmp_path, *given) as service:
            url, port = str(service.http.base_url), service.http.base_url.port
            digest = service.http.get("/v1/weights").json()["weight_digest"]
            shares = [range(first, NUM_REQUESTS, NUM_CLIENTS) for first in range(NUM_CLIENTS)]
            pending: list[Future[Any]] = [pool.submit(score_share, url, digest, share, results) for share in shares]
            running = pool.submit(score_file, url, source, out)
            partial = out.with_name(f"{out.name}.partial")
            wait_until(lambda: len(results) > 5 and partial.exists() and partial.read_text().count("\n") > 5)
            service.process.kill()
            service.process.wait(STOP_SECONDS)
            assert not any(future.done() for future in (*pending, running))
        assert port is not None
        with service_process(tmp_path, *given, port=port) as service:
            assert service.http.get("/v1/weights").json()["weight_digest"] == digest
            for future in (*pending, running):
                future.result(timeout=240)
            groups = [request(number)[0] for number in range(NUM_REQUESTS)]
            whole = ScoreResponse.model_validate(service.http.post("/v1/score", json={"groups": groups}).json())
    _assert_same(sorted(results, key=lambda group: int(str(group.id).removeprefix("r-"))), whole.groups)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["weight_digest"] for line in lines} == {digest}
    _assert_same(
        [GroupScore.model_validate({"id": line["id"], "completions": line["completions"]}) for line in lines],
        whole.groups,
    )


def _assert_same(groups: Sequence[GroupScore], expected: Sequence[GroupScore]) -> None:
    assert [group.id for group in groups] == [group.id for group in expected]
    for group, other in zip(groups, expected, strict=True):
        for score, same in zip(group.completions, other.completions, strict=True):
            assert score.rank == same.rank
            assert score.grad_norm == pytest.approx(same.grad_norm, rel=1e-5)
