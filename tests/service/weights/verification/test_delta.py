"""A delta is applied only if it turns the served tensors into exactly what it promises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.fake_scorer import FakeScorer
from vigor_client.publishing.delta_plan import make_delta_plan
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.schemas.weights import TensorList
from vigor_client.weight_format.delta import encode_changes
from vigor_client.weight_format.delta_index import INDEX_NAME
from vigor_client.weight_format.digest import PREFIX, checksum, raw_bytes
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.verification.delta import VerifiedDelta, verify_delta
from vigor_service.weights.verification.fingerprint import initial_weights

CHANGES = "model-00001-of-00001.safetensors"
Tensors = dict[str, torch.Tensor]


def old_tensors() -> Tensors:
    return FakeScorer().parameters


def new_tensors() -> Tensors:
    tensors = {name: tensor.clone() for name, tensor in old_tensors().items()}
    tensors["embed.weight"][7] += 1
    return tensors


def write_delta(directory: Path, tensors: Tensors, *, base_version: int = 0, version: int = 1) -> dict[str, Path]:
    """What a client would send."""
    served = initial_weights(FakeScorer())
    wanted = TensorList(weight_version=base_version, weight_digest=served.digest, tensors=list(served.tensors))
    snapshot = WeightSnapshot()
    snapshot.take_all(old_tensors(), wanted, weight_version=base_version, weight_digest=served.digest)
    plan = make_delta_plan(tensors, wanted, snapshot, weight_version=version)
    assert plan is not None
    paths = {file.announced.name: directory / file.announced.name for file in plan.files}
    for file in plan.files:
        paths[file.announced.name].write_bytes(b"".join(file.chunks()))
    return paths


def verify(paths: Mapping[str, Path]) -> VerifiedDelta:
    scorer = FakeScorer()
    return verify_delta(paths, initial_weights(scorer).tensors, scorer.tensors(), base_version=0, version=1)


def refusals(paths: Mapping[str, Path]) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(InvalidRequestError) as refused:
        verify(paths)
    return {tuple(error.loc): error.msg for error in refused.value.errors}


def test_a_good_delta_has_the_digest_of_the_new_tensors_and_patches_them_in_place(tmp_path: Path) -> None:
    verified = verify(write_delta(tmp_path, new_tensors()))
    scorer = FakeScorer()
    scorer.load(verified.writes())
    assert verified.digest == initial_weights(scorer).digest
    assert verified.num_changed_tensors == 1
    torch.testing.assert_close(scorer.parameters, new_tensors(), rtol=0, atol=0)


def test_verifying_changes_nothing(tmp_path: Path) -> None:
    scorer = FakeScorer()
    paths = write_delta(tmp_path, new_tensors())
    verify_delta(paths, initial_weights(scorer).tensors, scorer.tensors(), base_version=0, version=1)
    torch.testing.assert_close(scorer.parameters, old_tensors(), rtol=0, atol=0)


def test_changes_that_lead_elsewhere_from_these_weights_are_refused(tmp_path: Path) -> None:
    """As when the service holds other bytes than the trainer believes."""
    scorer = FakeScorer()
    scorer.parameters["embed.weight"][3] += 1
    with pytest.raises(InvalidRequestError) as refused:
        verify_delta(
            write_delta(tmp_path, new_tensors()),
            initial_weights(scorer).tensors,
            scorer.tensors(),
            base_version=0,
            version=1,
        )
    (error,) = refused.value.errors
    assert error.loc == ["files", CHANGES, "embed.weight"]
    assert "in the index" in error.msg


def test_values_that_become_infinite_are_refused(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    tensors = new_tensors()
    tensors["norm.weight"][0] = float("inf")
    _send_unchecked(paths, "norm.weight", tensors)
    assert "not finite" in refusals(paths)["files", CHANGES, "norm.weight"]


def _send_unchecked(paths: Mapping[str, Path], name: str, tensors: Tensors) -> None:
    """Write what no client would: its own check for finite values is passed by."""
    compressed = encode_changes(raw_bytes(old_tensors()[name]), raw_bytes(tensors[name]))
    assert compressed is not None
    promised = {name: checksum(raw_bytes(tensors[name])).removeprefix(PREFIX)}
    save_file({name: torch.frombuffer(bytearray(compressed), dtype=torch.uint8)}, paths[CHANGES], promised)
    _edit_index(paths, weight_map={name: CHANGES})


def _edit_index(paths: Mapping[str, Path], **members: object) -> None:
    index = json.loads(paths[INDEX_NAME].read_text())
    paths[INDEX_NAME].write_text(json.dumps(index | members))


def _edit_metadata(paths: Mapping[str, Path], **members: str) -> None:
    index = json.loads(paths[INDEX_NAME].read_text())
    _edit_index(paths, metadata=index["metadata"] | members)


@pytest.mark.parametrize(
    ("members", "place", "reason"),
    [
        ({"base_version": "000005"}, (), "is for a delta from 5 to 1, not from 0 to 1"),
        ({"version": "9"}, (), "is for a delta from 0 to 9"),
        ({"version": "new"}, ("metadata", "version"), "match"),
        ({"delta_encoding": "xor"}, ("metadata", "delta_encoding"), "overwrite"),
        ({"compression_format": "gzip"}, ("metadata", "compression_format"), "zstd"),
        ({"checksum_format": "adler32"}, ("metadata", "checksum_format"), "xxh3-128"),
    ],
)
def test_an_index_of_another_kind_or_other_versions_is_refused_by_its_member(
    tmp_path: Path, members: dict[str, str], place: tuple[str, ...], reason: str
) -> None:
    paths = write_delta(tmp_path, new_tensors())
    _edit_metadata(paths, **members)
    assert reason in refusals(paths)["files", INDEX_NAME, *place]


def test_a_delta_without_an_index_is_refused(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    del paths[INDEX_NAME]
    assert "is missing" in refusals(paths)["files", INDEX_NAME]


def test_names_that_nobody_knows_are_refused_all_at_once(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    _edit_index(paths, weight_map={"other.weight": CHANGES, "norm.weight": "elsewhere.safetensors"})
    assert refusals(paths) == {
        ("files", CHANGES, "other.weight"): "the model has no such tensor",
        ("files", "elsewhere.safetensors", "norm.weight"): "was not sent",
    }


def test_a_file_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    _edit_index(paths, weight_map={})
    assert refusals(paths) == {("files", CHANGES): "is not in the index"}


def test_a_tied_tensor_may_change_under_an_alias_but_not_twice(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    with safe_open(paths[CHANGES], framework="pt") as file:
        payload, metadata = file.get_tensor("embed.weight").clone(), file.metadata()
    promised = {"head.weight": metadata["embed.weight"]}
    save_file({"head.weight": payload}, paths[CHANGES], promised)
    _edit_index(paths, weight_map={"head.weight": CHANGES})
    assert verify(paths).num_changed_tensors == 1
    save_file({"head.weight": payload, "embed.weight": payload.clone()}, paths[CHANGES], promised | metadata)
    _edit_index(paths, weight_map={"embed.weight": CHANGES, "head.weight": CHANGES})
    assert refusals(paths) == {("files", CHANGES, "head.weight"): "changes embed.weight again: the two are tied"}


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    paths = write_delta(tmp_path, new_tensors())
    paths[CHANGES].write_bytes(content)
    assert ("files", CHANGES, "embed.weight") in refusals(paths)


def test_damaged_changes_are_refused(tmp_path: Path) -> None:
    paths = write_delta(tmp_path, new_tensors())
    save_file({"embed.weight": torch.zeros(9, dtype=torch.uint8)}, paths[CHANGES], {"embed.weight": "0" * 32})
    assert "zstd" in refusals(paths)["files", CHANGES, "embed.weight"]
