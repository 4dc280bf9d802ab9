"""How far a publication is, as its caller is told: the same phases and bytes by every transport."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from tests.client.fake_service import FakeService, problem
from tests.support.live_service import LiveService, live_service
from tests.support.preloaded_process import preloaded_children
from vigor_client import (
    AsyncVigorClient,
    Broadcast,
    PublishProgress,
    SharedDirectory,
    VigorClient,
    WeightSnapshot,
    WeightTransport,
    checkpoint_tensors,
)
from vigor_client.publishing.progress import ProgressReport
from vigor_client.publishing.transports.http import HttpUpload

NUM_VALUES = 1 << 20
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def fake() -> FakeService:
    return FakeService({"a": torch.zeros(NUM_VALUES), "b": torch.zeros(3)})


def new_weights() -> Tensors:
    return {"a": torch.ones(NUM_VALUES), "b": torch.ones(3)}


def client_of(fake: FakeService, *, max_retries: int = 0) -> VigorClient:
    return VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=max_retries)


def phases(told: list[PublishProgress]) -> list[str]:
    """The phases in their order, each once."""
    return [first for first, second in pairwise([*(each.phase for each in told), ""]) if first != second]


def assert_bytes_rise_to(total_bytes: int, told: list[PublishProgress]) -> None:
    """Bytes begin at 0, rise, and end at the total, which is known from the beginning."""
    counts = [each.done_bytes for each in told if each.phase == "sending"]
    assert counts[0] == 0
    assert counts[-1] == total_bytes
    assert all(first < second for first, second in pairwise(counts))
    assert {each.total_bytes for each in told if each.phase == "sending"} == {total_bytes}


def test_bytes_of_tensors_are_counted_while_they_are_sent(fake: FakeService) -> None:
    told: list[PublishProgress] = []
    with client_of(fake) as client:
        published = client.publish_weights(new_weights(), weight_version=1, on_progress=told.append)
    assert phases(told) == ["hashing", "sending", "verifying"]
    assert told[0] == PublishProgress("hashing", 0, None)
    assert told[-1] == PublishProgress("verifying", 0, None)
    assert_bytes_rise_to(published.sent_bytes, told)
    assert len(told) > 5  # a chunk has 1 MiB


def test_the_async_client_tells_the_same(fake: FakeService) -> None:
    told: list[PublishProgress] = []

    async def publish() -> None:
        async with AsyncVigorClient("http://service", transport=httpx.MockTransport(fake)) as client:
            await client.publish_weights(new_weights(), weight_version=1, on_progress=told.append)

    asyncio.run(publish())
    expected: list[PublishProgress] = []
    with client_of(FakeService({"a": torch.zeros(NUM_VALUES), "b": torch.zeros(3)})) as client:
        client.publish_weights(new_weights(), weight_version=1, on_progress=expected.append)
    assert told == expected


def test_a_checkpoint_is_compared_and_hashed_first(fake: FakeService, tmp_path: Path) -> None:
    save_file(new_weights(), tmp_path / "model.safetensors")
    told: list[PublishProgress] = []
    with client_of(fake) as client:
        published = client.publish_weights(checkpoint_tensors(tmp_path), weight_version=1, on_progress=told.append)
    assert phases(told) == ["comparing", "hashing", "sending", "verifying"]
    hashed = [each for each in told if each.phase == "hashing"]
    assert hashed[0] == PublishProgress("hashing", 0, published.sent_bytes)
    assert hashed[-1] == PublishProgress("hashing", published.sent_bytes, published.sent_bytes)
    assert_bytes_rise_to(published.sent_bytes, told)


def test_weights_that_serve_already_are_not_sent(fake: FakeService) -> None:
    told: list[PublishProgress] = []
    with client_of(fake) as client:
        client.publish_weights(dict(fake.tensors), weight_version=1, on_progress=told.append)
    assert phases(told) == ["hashing"]


def test_a_file_that_is_sent_again_does_not_count_twice(fake: FakeService) -> None:
    fake.instead["PUT /v1/weights/updates"] = lambda request: (request.read(), problem(503, "draining"))[1]
    told: list[PublishProgress] = []
    with client_of(fake, max_retries=1) as client:
        published = client.publish_weights(new_weights(), weight_version=1, on_progress=told.append)
    assert_bytes_rise_to(published.sent_bytes, told)


@pytest.mark.parametrize("phase", ["hashing", "sending", "verifying"])
def test_what_the_callback_raises_ends_the_publication_and_drops_the_update(phase: str, fake: FakeService) -> None:
    def refuse(progress: PublishProgress) -> None:
        if progress.phase == phase:
            raise RuntimeError("no more")

    with client_of(fake) as client, pytest.raises(RuntimeError, match="no more"):
        client.publish_weights(new_weights(), weight_version=1, on_progress=refuse)
    assert fake.weight_version == 0
    assert not fake.has_open_update


def test_a_chunk_that_is_counted_late_belongs_to_its_own_phase() -> None:
    told: list[PublishProgress] = []
    report = ProgressReport(told.append)
    report.begin("sending", 3)
    chunks = report.count("sending", [b"abc"], 0)
    assert next(chunks) == b"abc"
    report.begin("verifying")
    assert list(chunks) == []
    assert phases(told) == ["sending", "verifying"]
    assert told[-1] == PublishProgress("verifying")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    (tmp_path / "root").mkdir()
    with (
        preloaded_children(),
        live_service(tmp_path / "staging", weights_root=tmp_path / "root", allow_broadcast=True) as running,
    ):
        yield running


@pytest.mark.parametrize("kind", ["http", "directory", "broadcast"])
def test_every_transport_counts_full_updates_deltas_and_parts(kind: str, service: LiveService, tmp_path: Path) -> None:
    transports: dict[str, WeightTransport] = {
        "http": HttpUpload(),
        "directory": SharedDirectory(tmp_path / "root"),
        "broadcast": Broadcast(timeout_seconds=30.0),
    }
    tensors = {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}
    snapshot = WeightSnapshot()
    with VigorClient(str(service.http.base_url), timeout_seconds=30.0) as client:
        for version, expected in enumerate(["full", "delta", "partial"], start=1):
            tensors["embed.weight"][version] += 0.25
            told: list[PublishProgress] = []
            published = client.publish_weights(
                {"embed.weight": tensors["embed.weight"]} if expected == "partial" else tensors,
                weight_version=version,
                snapshot=None if expected == "partial" else snapshot,
                partial=expected == "partial",
                transport=transports[kind],
                on_progress=told.append,
            )
            assert published.encoding == expected
            assert phases(told) == ["comparing" if expected == "delta" else "hashing", "sending", "verifying"]
            assert_bytes_rise_to(published.sent_bytes, told)
