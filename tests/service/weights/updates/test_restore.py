"""A restart ends with the bytes that were published last, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import push
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client import VigorClient, WeightSnapshot
from vigor_client.weight_format.delta_index import INDEX_NAME
from vigor_service.runtime import LoadedModel

Tensors = dict[str, torch.Tensor]
GROUP = {"prompt_ids": [1], "completions": [[2], [3]]}


@contextmanager
def service(tmp_path: Path, *, wait_ready: bool = True) -> Iterator[LiveService]:
    with live_service(None, state_dir=tmp_path / "state", wait_ready=wait_ready) as running:
        yield running


def publish(running: LiveService, *encodings: str) -> Tensors:
    """Publish versions 1, 2, …, each another row changed, in these encodings; return the last."""
    tensors = {name: tensor.clone() for name, tensor in running.scorer.parameters.items()}
    snapshot = WeightSnapshot()
    with VigorClient(str(running.http.base_url)) as client:
        for version, encoding in enumerate(encodings, start=1):
            tensors["embed.weight"][version] += 0.5
            if encoding == "full":
                snapshot = WeightSnapshot()
            published = client.publish_weights(tensors, weight_version=version, snapshot=snapshot)
            assert published.encoding == encoding
    return tensors


def stored(tmp_path: Path, number: int) -> Path:
    return tmp_path / "state" / f"{number:08d}"


def weights(running: LiveService) -> dict[str, object]:
    info = running.http.get("/v1/weights").json()
    return {key: info[key] for key in ("weight_version", "weight_digest", "state")}


@pytest.mark.parametrize("encodings", [("full",), ("full", "delta", "delta"), ("full", "delta", "full", "delta")])
def test_a_restart_serves_what_was_published_last(tmp_path: Path, encodings: tuple[str, ...]) -> None:
    with service(tmp_path) as running:
        tensors = publish(running, *encodings)
        before, norms = weights(running), running.norms()
    with service(tmp_path) as restarted:
        assert weights(restarted) == before
        assert before["weight_version"] == len(encodings)
        assert restarted.norms() == norms
        torch.testing.assert_close(restarted.scorer.parameters, tensors, rtol=0, atol=0)


def test_a_restart_without_a_publication_serves_what_was_loaded(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        before = weights(running)
    with service(tmp_path) as restarted:
        assert weights(restarted) == before


def test_a_delta_follows_on_what_was_restored(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        tensors = publish(running, "full", "delta")
    with service(tmp_path) as restarted, VigorClient(str(restarted.http.base_url)) as client:
        snapshot = WeightSnapshot()
        assert client.publish_weights(tensors, weight_version=3, snapshot=snapshot).encoding is None
        tensors["norm.weight"][0] += 1
        assert client.publish_weights(tensors, weight_version=4, snapshot=snapshot).encoding == "delta"
    with service(tmp_path) as again:
        torch.testing.assert_close(again.scorer.parameters, tensors, rtol=0, atol=0)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # hard links: what is staged is the same file
    path.write_bytes(data)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


CHANGES = "model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("damage", "last_good"),
    [
        (lambda path: flip_byte(stored(path, 1) / "files" / CHANGES), 0),
        (lambda path: truncate(stored(path, 1) / "files" / CHANGES), 0),
        (lambda path: (stored(path, 1) / "files" / CHANGES).unlink(), 0),
        (lambda path: flip_byte(stored(path, 3) / "files" / CHANGES), 2),
        (lambda path: truncate(stored(path, 3) / "files" / INDEX_NAME), 2),
        (lambda path: (stored(path, 2)).rename(path / "elsewhere"), 1),
        (lambda path: (stored(path, 2) / "update.json").write_text("{}"), 0),
    ],
)
def test_a_damaged_directory_is_reported_and_a_full_update_waited_for(
    tmp_path: Path, damage: Callable[[Path], object], last_good: int
) -> None:
    with service(tmp_path) as running:
        tensors = publish(running, "full", "delta", "delta")
        norms = running.norms()
    damage(tmp_path)
    with service(tmp_path, wait_ready=False) as restarted:
        wait_until_poisoned(restarted)
        assert (weights(restarted)["weight_version"], weights(restarted)["state"]) == (last_good, "poisoned")
        refused = restarted.score(groups=[GROUP]).json()
        assert refused["code"] == "weights_poisoned"
        assert "state directory" in refused["detail"]
        assert "0000000" in refused["detail"]
        assert push(restarted.http, tensors, version=4).status_code == 200
        assert restarted.norms() == norms
    with service(tmp_path) as again:
        assert (weights(again)["weight_version"], again.norms()) == (4, norms)


def wait_until_poisoned(running: LiveService) -> None:
    wait_until(lambda: running.http.get("/readyz").json().get("reason") == "weights_poisoned")


def test_weights_of_another_model_are_not_served(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        publish(running, "full")
    with live_service(None, state_dir=tmp_path / "state", wait_ready=False, load_model=_other_model) as other:
        wait_until_poisoned(other)
        assert "the model has no such tensor" in other.score(groups=[GROUP]).json()["detail"]


def _other_model() -> LoadedModel:
    scorer = FakeScorer()
    scorer.parameters = {"other.weight": scorer.parameters["embed.weight"]}
    scorer.aliases = dict  # pyright: ignore[reportAttributeAccessIssue] - tied to nothing
    return LoadedModel(scorer, tiny_tokenizer())  # pyright: ignore[reportArgumentType] - see __main__
