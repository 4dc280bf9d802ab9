"""The client against the real service over a real socket: what both ends promise each other holds."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import httpx
import pytest
import torch
from safetensors.torch import save_file

from tests.service.routes.test_score_stream import stepping_service
from tests.support.fake_scorer import MAX_SEQUENCE_TOKENS, VOCAB_SIZE
from tests.support.live_service import LiveService, live_service
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client import (
    AsyncVigorClient,
    Completion,
    Group,
    GroupScore,
    InvalidRequestError,
    QueueFullError,
    ScoreResponse,
    SequenceTooLongError,
    TensorsRefusedError,
    VigorClient,
    WeightDigestMismatchError,
    WeightVersionMismatchError,
    checkpoint_tensors,
    digest_of_tensors,
)
from vigor_client.cli.main import main
from vigor_client.schemas.scoring import ScoreRequest
from vigor_client.transport.connections import Connections
from vigor_client.transport.endpoints import Endpoints
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.retry import RetryPolicy
from vigor_client.transport.wire import BlockingWire, run_blocking
from vigor_service.engine.engine import Engine
from vigor_service.engine.sequences import TokenSequence
from vigor_service.runtime import LoadedModel
from vigor_service.scoring.text_tokens import Tokenizer

SEQUENCES = [TokenSequence((1, 2), (3, 4)), TokenSequence((1, 2), (5,))]
GROUPS = [Group(id="q", prompt_ids=[1, 2], completions=[Completion(ids=[3, 4]), Completion(ids=[5])])]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "staging") as running:
        yield running


def url_of(service: LiveService) -> str:
    return str(service.http.base_url)


@pytest.fixture
def client(service: LiveService) -> Iterator[VigorClient]:
    with VigorClient(url_of(service), timeout_seconds=30.0, max_retries=2) as client:
        yield client


def trained(service: LiveService) -> dict[str, torch.Tensor]:
    """What a trainer would have after a step."""
    return {name: tensor + 1.0 for name, tensor in service.scorer.parameters.items()}


def norms(response: ScoreResponse) -> list[float | None]:
    return [completion.grad_norm for completion in response.groups[0].completions]


def staged(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.suffix == ".safetensors"]


def test_every_question_has_its_answer(client: VigorClient) -> None:
    client.wait_until_ready(20.0)
    assert client.health().status == client.ready().status == "ok"
    assert client.model().model == "fake"
    assert client.weights().weight_digest == client.tensors().weight_digest
    assert client.metrics()["vigor_queued_tokens"] == 0.0
    scores = client.score(GROUPS, weight_version=0, weight_digest=client.weights().weight_digest)
    assert [completion.status for completion in scores.groups[0].completions] == ["ok", "ok"]
    assert sorted(completion.reward for completion in scores.groups[0].completions) == [-1.0, 1.0]


async def test_the_async_client_gets_the_same_numbers(service: LiveService, client: VigorClient) -> None:
    async with AsyncVigorClient(url_of(service)) as asking:
        answers = await asyncio.gather(*(asking.score(GROUPS) for _ in range(4)))
    assert [completion for answer in answers for completion in answer.groups[0].completions] == client.score(
        GROUPS
    ).groups[0].completions * 4


def test_published_weights_score_under_the_digest_computed_here(service: LiveService, client: VigorClient) -> None:
    before = client.score(GROUPS)
    expected = digest_of_tensors(trained(service), client.tensors())
    published = client.publish_weights(trained(service), weight_version=1)
    assert (published.weight_version, published.weight_digest, published.num_changed_tensors) == (1, expected, 2)
    assert client.weights().weight_digest == expected
    after = client.score(GROUPS, weight_version=1, weight_digest=expected)
    assert norms(after) != norms(before)


def test_weights_that_serve_already_are_not_sent_again(service: LiveService, client: VigorClient) -> None:
    weights = trained(service)
    first = client.publish_weights(weights, weight_version=1)
    again = client.publish_weights(weights, weight_version=2)
    assert again.sent_bytes == 0 < first.sent_bytes
    assert (again.weight_version, again.weight_digest) == (1, first.weight_digest)
    assert client.weights().weight_version == 1


def test_the_async_client_publishes_what_the_blocking_one_would(service: LiveService, client: VigorClient) -> None:
    async def publish() -> str:
        async with AsyncVigorClient(url_of(service)) as publishing:
            return (await publishing.publish_weights(trained(service), weight_version=1)).weight_digest

    expected = digest_of_tensors(trained(service), client.tensors())
    assert asyncio.run(publish()) == expected == client.weights().weight_digest


def test_tensors_that_do_not_fit_are_refused_here_and_the_scores_stay(client: VigorClient, tmp_path: Path) -> None:
    before = norms(client.score(GROUPS))
    wrong = {"norm.weight": torch.tensor([1.0, float("nan"), 1.0]), "stranger": torch.ones(1)}
    with pytest.raises(TensorsRefusedError) as raised:
        client.publish_weights(wrong, weight_version=1)
    assert set(raised.value.faults) == {"embed.weight", "norm.weight", "stranger"}
    assert norms(client.score(GROUPS, weight_version=0)) == before
    assert staged(tmp_path) == []


class BreaksOff(Mapping[str, torch.Tensor]):
    """Fails when a tensor is read for the second time, which is in the middle of the upload."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._reads: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._reads and name == "norm.weight":
            raise RuntimeError("the disk is gone")
        self._reads.add(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def test_an_upload_that_breaks_off_leaves_the_old_weights_and_no_trace(
    service: LiveService, client: VigorClient, tmp_path: Path
) -> None:
    before = norms(client.score(GROUPS))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        client.publish_weights(BreaksOff(trained(service)), weight_version=1)
    wait_until(lambda: staged(tmp_path) == [])
    assert norms(client.score(GROUPS, weight_version=0)) == before
    assert client.publish_weights(trained(service), weight_version=1).weight_version == 1


class LosesAnswers(httpx.BaseTransport):
    """A network that delivers everything, but loses the first answer to each call that ``path_end`` ends."""

    def __init__(self, *path_ends: str) -> None:
        self._path_ends = list(path_ends)
        self._network = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._network.handle_request(request)
        for path_end in self._path_ends:
            if request.url.path.endswith(path_end):
                self._path_ends.remove(path_end)
                response.read()
                response.close()
                raise httpx.ReadError("the answer got lost", request=request)
        return response

    def close(self) -> None:
        self._network.close()


def test_lost_answers_to_files_and_commits_are_asked_for_again(service: LiveService) -> None:
    network = LosesAnswers(".safetensors", "/commit", "/score")
    with VigorClient(url_of(service), transport=network, max_retries=1) as client:
        published = client.publish_weights(trained(service), weight_version=1)
        assert published.num_changed_tensors == 2
        assert client.score(GROUPS, weight_version=1).weight_digest == published.weight_digest


def test_a_score_waits_for_the_weights_that_are_on_their_way(service: LiveService, client: VigorClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.score, GROUPS, weight_version=1, wait_seconds=20.0)
        wait_until(lambda: client.metrics()["vigor_queued_requests"] == 1.0)
        published = client.publish_weights(trained(service), weight_version=1)
        assert waiting.result(20.0).weight_digest == published.weight_digest


def test_other_weights_than_asked_for_are_refused_with_have_and_want(client: VigorClient) -> None:
    with pytest.raises(WeightVersionMismatchError) as version:
        client.score(GROUPS, weight_version=9)
    assert (version.value.have, version.value.want) == (0, 9)
    wanted = "xxh3-128:" + "0" * 32
    with pytest.raises(WeightDigestMismatchError) as digest:
        client.score(GROUPS, weight_version=0, weight_digest=wanted)
    assert (digest.value.have, digest.value.want) == (client.weights().weight_digest, wanted)


def test_refusals_name_the_place(client: VigorClient) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.score([GROUPS[0], {"prompt_ids": [VOCAB_SIZE], "completions": [[1]]}])
    assert raised.value.errors[0].loc[:2] == ["groups", 1]
    with pytest.raises(SequenceTooLongError) as too_long:
        client.score([{"prompt_ids": [1], "completions": [[1], [1] * MAX_SEQUENCE_TOKENS]}])
    assert too_long.value.errors[0].loc[:4] == ["groups", 0, "completions", 1]


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=1) as service, ThreadPoolExecutor(2) as pool:
        impatient = VigorClient(url_of(service), max_retries=0)
        patient = VigorClient(url_of(service), max_retries=8)
        with impatient, patient:
            service.scorer.gate.clear()
            first = pool.submit(impatient.score, GROUPS)
            assert service.scorer.is_scoring.wait(20.0)
            with pytest.raises(QueueFullError) as raised:
                impatient.score(GROUPS)
            assert raised.value.retry_after_seconds > 0
            second = pool.submit(patient.score, GROUPS)
            threading.Timer(0.2, service.scorer.gate.set).start()
            assert norms(first.result(20.0)) == norms(second.result(60.0))


def test_groups_are_told_of_while_the_others_are_computed(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, scorer), VigorClient(url_of(service)) as client:
        told: list[int] = []

        def go_on(index: int, _group: GroupScore) -> None:
            told.append(index)
            scorer.permits.release()  # without which the next group is never computed

        scorer.permits.release()
        groups = [{"prompt_ids": [1], "completions": [[number] * number]} for number in (1, 2, 3)]
        assert len(client.score(groups, on_group=go_on).groups) == 3
    assert told == [2, 1, 0]


def test_a_long_computation_is_no_dead_connection(tmp_path: Path) -> None:
    with live_service(tmp_path, beat_seconds=0.05) as service, httpx.Client(base_url=url_of(service)) as http:
        patient_for_seconds, computing_for_seconds = 0.75, 1.5
        wire = BlockingWire(Connections(lambda: http), silence_seconds=patient_for_seconds)
        endpoints = Endpoints(Exchange(wire, RetryPolicy(max_retries=0), random=lambda: 0.0), timeout_seconds=20.0)
        service.scorer.gate.clear()
        threading.Timer(computing_for_seconds, service.scorer.gate.set).start()
        assert run_blocking(endpoints.score(ScoreRequest(groups=GROUPS))).groups[0].id == "q"


def test_the_command_line_pushes_and_scores(
    service: LiveService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(trained(service), tmp_path / "model.safetensors")
    (tmp_path / "in.jsonl").write_text(GROUPS[0].model_dump_json(exclude_none=True) + "\n")
    url = ["--url", url_of(service)]
    assert main(["push", str(tmp_path), "--weight-version", "4", *url]) == 0
    assert "published version 4" in capsys.readouterr().out
    assert main(["score", str(tmp_path / "in.jsonl"), *url]) == 0
    assert '"weight_version": 4' in capsys.readouterr().out
    assert main(["status", *url]) == 0
    shown = capsys.readouterr().out
    assert "state     ready" in shown
    assert "weights   version 4, ready" in shown
    assert "queue     0 requests, 0 tokens" in shown


def test_a_real_model_with_tied_weights_serves_exactly_the_checkpoint_that_was_saved(tmp_path: Path) -> None:
    def load() -> LoadedModel:
        return LoadedModel(Engine(tiny_model("qwen2-tied"), name="tiny"), cast("Tokenizer", tiny_tokenizer()))

    step = torch.Generator().manual_seed(1)
    trainer = tiny_model("qwen2-tied")
    with live_service(tmp_path / "staging", load_model=load) as service, VigorClient(url_of(service)) as client:
        assert client.publish_weights(trainer.state_dict(), weight_version=1).sent_bytes == 0
        before = norms(client.score(GROUPS))
        with torch.no_grad():
            for parameter in trainer.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=step))
        published = client.publish_weights(trainer.state_dict(), weight_version=1)
        trainer.save_pretrained(tmp_path / "checkpoint")
        saved = checkpoint_tensors(tmp_path / "checkpoint")
        assert digest_of_tensors(saved, client.tensors()) == published.weight_digest == client.weights().weight_digest
        after = norms(client.score(GROUPS, weight_version=1))
    expected = [score.grad_norm for score in Engine(trainer, name="trained").score(SEQUENCES).scores]
    assert after == pytest.approx(expected, rel=1e-6)
    assert after != pytest.approx(before, rel=1e-3)
