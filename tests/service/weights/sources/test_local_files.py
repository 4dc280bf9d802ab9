"""Weights from this machine's own disk, by the calls that refresh SGLang and slime's engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.live_service import LiveService, live_service
from tests.support.published import Published, Tensors, outcome, pull
from vigor_client.weight_format.delta_index import INDEX_NAME


def holds(service: LiveService, tensors: Tensors, version: int) -> None:
    assert service.http.get("/v1/weights").json()["weight_version"] == version
    assert service.http.get("/model_info").json()["weight_version"] == str(version)
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ from disk


@pytest.mark.parametrize("version", [7, "7", "000007"])
def test_a_checkpoint_is_served(service: LiveService, published: Published, version: int | str) -> None:
    published.full(3)
    body = {"model_path": str(published.path(3)), "weight_version": version, "flush_cache": True}
    told = outcome(service, "/update_weights_from_disk", body)
    assert told["success"], told
    assert told["num_paused_requests"] == 0
    holds(service, published.at(3), 7)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(service: LiveService, root: Path) -> None:
    norms = service.norms()
    save_file({"embed.weight": torch.zeros(2, 2)}, root / "model.safetensors")
    told = outcome(service, "/update_weights_from_disk", {"model_path": str(root), "weight_version": 1})
    assert not told["success"]
    assert "norm.weight is missing" in told["message"]
    assert service.norms() == norms


def test_only_the_files_that_transformers_loads_are_taken(service: LiveService, published: Published) -> None:
    published.full(3)
    for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        save_file({"stale.weight": torch.zeros(2)}, published.path(3) / name)
    index = {"weight_map": {"stale.weight": "model-00001-of-00002.safetensors"}}
    (published.path(3) / INDEX_NAME).write_text(json.dumps(index))
    body: dict[str, object] = {"model_path": str(published.path(3)), "weight_version": 3}
    assert outcome(service, "/update_weights_from_disk", body)["success"]
    holds(service, published.at(3), 3)


def test_a_checkpoint_in_a_wider_dtype_is_cast_as_at_start(service: LiveService, published: Published) -> None:
    wide = {name: tensor.double() for name, tensor in published.at(2).items()}
    save_file(wide, published.path(2) / "model.safetensors")
    body: dict[str, object] = {"model_path": str(published.path(2)), "weight_version": 2}
    assert outcome(service, "/update_weights_from_disk", body)["success"]
    holds(service, published.at(2), 2)


def test_a_directory_that_is_no_checkpoint_is_refused_by_name(service: LiveService, root: Path) -> None:
    for name, message in (
        ("x.safetensors", "holds neither model.safetensors"),
        ("adapter_config.json", "PEFT adapter"),
    ):
        (root / name).write_bytes(b"{}")
        told = outcome(service, "/update_weights_from_disk", {"model_path": str(root), "weight_version": 1})
        assert message in told["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"weight_version": 1}, "model_path"),
        ({"model_path": "x"}, "weight_version"),
        ({"model_path": "x", "weight_version": "default"}, "weight_version"),
        ({"model_path": "x", "weight_version": 1, "load_format": "dummy"}, "load_format"),
        ({"model_path": "x", "weight_version": 1, "abort_all_requests": True}, "abort_all_requests"),
        ({"model_path": "x", "weight_version": 1, "is_async": True}, "is_async"),
        ({"model_path": "x", "weight_version": 1, "unheard_of": True}, "unheard_of"),
        ({"model_path": "/", "weight_version": 1}, "weights-root"),
        ({"model_path": "/nowhere", "weight_version": 1}, "weights-root"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(service: LiveService, body: dict[str, object], message: str) -> None:
    told = outcome(service, "/update_weights_from_disk", body)
    assert not told["success"]
    assert message in told["message"]


def test_paths_and_links_that_lead_out_of_the_root_are_refused(
    service: LiveService, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    save_file({"x": torch.zeros(1)}, outside / "model.safetensors")
    (root / "link").symlink_to(outside)
    (root / "linked").mkdir()
    (root / "linked" / "model.safetensors").symlink_to(outside / "model.safetensors")
    for path in (root / ".." / "outside", root / "link", root / "linked"):
        told = outcome(service, "/update_weights_from_disk", {"model_path": str(path), "weight_version": 1})
        assert "weights-root" in told["message"], told


def test_nothing_is_taken_without_a_root(tmp_path: Path) -> None:
    with live_service(tmp_path / "staging") as service:
        told = outcome(service, "/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": 1})
    assert "start the service with --weights-root" in told["message"]


# ---------------------------------------------------------------------------------------------- pulls


def test_a_version_is_reached_from_the_newest_full_one(service: LiveService, published: Published) -> None:
    published.full(1)
    published.delta(2)
    published.full(3)
    published.delta(4)
    published.delta(5)
    assert pull(service, published.directory, "000005")["success"]
    holds(service, published.at(5), 5)


def test_the_next_version_takes_its_changes_alone(service: LiveService, published: Published) -> None:
    published.full(1)
    assert pull(service, published.directory, 1)["success"]
    (published.path(1) / "model.safetensors").unlink()
    for version in (2, 3):
        published.delta(version)
        assert pull(service, published.directory, version)["success"]
        holds(service, published.at(version), version)


def test_a_version_that_is_served_already_changes_nothing(service: LiveService, published: Published) -> None:
    published.full(1)
    assert pull(service, published.directory, 1)["success"]
    before = service.http.get("/v1/weights").json()
    assert pull(service, published.directory, 1)["success"]
    assert service.http.get("/v1/weights").json() == before


def test_an_older_version_is_out_of_order(service: LiveService, published: Published) -> None:
    published.full(1)
    published.delta(2)
    assert pull(service, published.directory, 2)["success"]
    told = pull(service, published.directory, 1)
    assert "out of order" in told["message"]
    holds(service, published.at(2), 2)


def test_a_gap_is_named(service: LiveService, published: Published) -> None:
    published.full(1)
    assert pull(service, published.directory, 1)["success"]
    published.delta(3)
    told = pull(service, published.directory, 3)
    assert "weight_v000002 does not exist" in told["message"]
    holds(service, published.at(1), 1)


def test_weights_that_came_otherwise_are_no_base(service: LiveService, published: Published) -> None:
    """Two runs may both have a version 1: changes count only from weights that came from the same directory."""
    published.full(1)
    published.delta(2)
    other = published.at(9)
    save_file(other, published.path(77) / "model.safetensors")
    body: dict[str, object] = {"model_path": str(published.path(77)), "weight_version": 1}
    assert outcome(service, "/update_weights_from_disk", body)["success"]
    assert pull(service, published.directory, 2)["success"]
    holds(service, published.at(2), 2)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("delta_encoding", "xor"),
        ("compression_format", "lz4"),
        ("checksum_format", "adler32"),
        ("version", "000009"),
        ("base_version", "000002"),
    ],
)
def test_an_index_that_says_something_else_is_refused(
    service: LiveService, published: Published, member: str, value: str
) -> None:
    published.full(1)
    published.delta(2)
    index_path = published.path(2) / INDEX_NAME
    index = json.loads(index_path.read_text())
    index["metadata"][member] = value
    index_path.write_text(json.dumps(index))
    told = pull(service, published.directory, 2)
    assert not told["success"]
    assert INDEX_NAME in told["message"]
    holds(service, published.at(0), 0)


def test_a_damaged_index_is_not_taken_for_a_checkpoint(service: LiveService, published: Published) -> None:
    published.full(1)
    published.delta(2)
    (published.path(2) / INDEX_NAME).write_text('{"metadata": {"delta')
    told = pull(service, published.directory, 2)
    assert INDEX_NAME in told["message"]


def test_a_flipped_byte_is_found_by_the_tensors_checksum(service: LiveService, published: Published) -> None:
    published.full(1)
    published.delta(2)
    (path,) = published.path(2).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    told = pull(service, published.directory, 2)
    assert not told["success"]
    assert "embed.weight" in told["message"]
    holds(service, published.at(1), 1)  # the full version before it was served
    assert not list(path.parent.parent.rglob("*.part"))


@pytest.mark.parametrize("name", ["../weight_v000001/model.safetensors", "/etc/passwd", "gone.safetensors"])
def test_files_that_an_index_must_not_name_are_refused(service: LiveService, published: Published, name: str) -> None:
    published.full(1)
    published.delta(2)
    index_path = published.path(2) / INDEX_NAME
    index = json.loads(index_path.read_text())
    index["weight_map"] = {"embed.weight": name}
    index_path.write_text(json.dumps(index))
    told = pull(service, published.directory, 2)
    assert not told["success"]
    assert name in told["message"]


def test_model_info_has_sglangs_fields(service: LiveService) -> None:
    info = service.http.get("/model_info").json()
    assert info | {"weight_digest": ""} == {
        "model_path": "fake",
        "tokenizer_path": "fake",
        "is_generation": False,
        "preferred_sampling_params": None,
        "weight_version": "0",
        "weight_digest": "",
    }
