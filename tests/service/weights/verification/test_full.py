import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.fake_scorer import FakeScorer
from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import model_digest
from vigor_client.weight_format.element_types import ELEMENT_TYPES
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.verification.fingerprint import describe, initial_weights
from vigor_service.weights.verification.full import VerifiedUpdate, verify_tensors
from vigor_service.weights.verification.tensor_files import MAX_HEADER_BYTES

Tensors = dict[str, torch.Tensor]


def _served() -> tuple[TensorInfo, ...]:
    return initial_weights(FakeScorer()).tensors


def _new_tensors() -> Tensors:
    return {name: tensor + 1 for name, tensor in FakeScorer().parameters.items()}


def _verify(directory: Path, *files: Tensors, partial: bool = False) -> VerifiedUpdate:
    paths = {f"{index}.safetensors": directory / f"{index}.safetensors" for index in range(len(files))}
    for path, tensors in zip(paths.values(), files, strict=True):
        save_file(tensors, path)
    return verify_tensors(paths, _served(), partial=partial)


def _refusals(directory: Path, *files: Tensors, partial: bool = False) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(InvalidRequestError) as refused:
        _verify(directory, *files, partial=partial)
    return {tuple(error.loc): error.msg for error in refused.value.errors}


def test_a_good_update_is_described_and_can_be_read(tmp_path: Path) -> None:
    tensors = _new_tensors()
    verified = _verify(tmp_path, tensors)
    expected = [describe(name, tensor) for name, tensor in tensors.items()]
    assert [info.checksum for info in verified.tensors] == [info.checksum for info in expected]
    assert verified.num_changed_tensors == 2
    written = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for name, write in verified.writes():
        write(written[name])
    torch.testing.assert_close(written, tensors, rtol=0, atol=0)


def test_tensors_may_come_in_several_files_and_only_changed_ones_are_counted(tmp_path: Path) -> None:
    tensors = _new_tensors()
    norm = FakeScorer().parameters["norm.weight"]
    verified = _verify(tmp_path, {"embed.weight": tensors["embed.weight"]}, {"norm.weight": norm})
    assert verified.num_changed_tensors == 1
    assert sorted(name for name, _ in verified.writes()) == ["embed.weight", "norm.weight"]


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    tensors = _new_tensors()
    together = _verify(tmp_path, tensors)
    apart = _verify(tmp_path, *({name: tensor} for name, tensor in tensors.items()))
    assert together.digest == apart.digest


def test_an_alias_with_the_same_bytes_is_accepted_and_not_read_twice(tmp_path: Path) -> None:
    tensors = _new_tensors()
    verified = _verify(tmp_path, {**tensors, "head.weight": tensors["embed.weight"].clone()})
    assert sorted(name for name, _ in verified.writes()) == ["embed.weight", "norm.weight"]


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def _with(name: str, change: Callable[[Tensors], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors)}


def _poisoned(value: float) -> Callable[[Tensors], torch.Tensor]:
    def change(tensors: Tensors) -> torch.Tensor:
        tensor = tensors["norm.weight"].clone()
        tensor[1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        (_without("norm.weight"), ("tensors", "norm.weight"), "is missing, the model needs float32 [3]"),
        (
            _with("extra.weight", lambda _: torch.zeros(1)),
            ("files", "0.safetensors", "extra.weight"),
            "the model has no such tensor",
        ),
        (
            _with("norm.weight", lambda tensors: tensors["norm.weight"][:2]),
            ("files", "0.safetensors", "norm.weight"),
            "is float32 [2], the model needs float32 [3]",
        ),
        (
            _with("norm.weight", lambda tensors: tensors["norm.weight"].bfloat16()),
            ("files", "0.safetensors", "norm.weight"),
            "is bfloat16 [3], the model needs float32 [3]",
        ),
        (
            _with("norm.weight", _poisoned(float("nan"))),
            ("files", "0.safetensors", "norm.weight"),
            "has values that are not finite (NaN or infinite)",
        ),
        (
            _with("norm.weight", _poisoned(float("inf"))),
            ("files", "0.safetensors", "norm.weight"),
            "has values that are not finite (NaN or infinite)",
        ),
        (
            _with("head.weight", lambda tensors: tensors["embed.weight"] + 1),
            ("files", "0.safetensors", "head.weight"),
            "is tied to embed.weight but has different values",
        ),
        (
            lambda tensors: {"head.weight": tensors["embed.weight"], "norm.weight": tensors["norm.weight"]},
            ("tensors", "embed.weight"),
            "is missing, the model needs float32 [320, 2]; it was sent as head.weight: "
            "send it under its canonical name",
        ),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], Tensors], place: tuple[str, ...], message: str
) -> None:
    assert _refusals(tmp_path, change(_new_tensors())) == {place: message}


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path) -> None:
    tensors = _new_tensors()
    refusals = _refusals(tmp_path, tensors, {"norm.weight": tensors["norm.weight"]})
    assert refusals == {
        ("files", "1.safetensors", "norm.weight"): "is in file 0.safetensors already: send each tensor once"
    }


def test_everything_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    refusals = _refusals(tmp_path, {"norm.weight": _poisoned(float("nan"))(_new_tensors()), "x": torch.zeros(1)})
    assert set(refusals) == {
        ("files", "0.safetensors", "norm.weight"),
        ("files", "0.safetensors", "x"),
        ("tensors", "embed.weight"),
    }


def test_a_partial_update_leaves_the_tensors_that_did_not_come_as_they_are_served(tmp_path: Path) -> None:
    norm = _new_tensors()["norm.weight"]
    verified = _verify(tmp_path, {"norm.weight": norm}, partial=True)
    together = {**FakeScorer().parameters, "norm.weight": norm}
    assert verified.digest == model_digest([describe(name, tensor) for name, tensor in together.items()])
    assert verified.num_changed_tensors == 1
    assert [name for name, _ in verified.writes()] == ["norm.weight"]


def test_a_partial_update_may_hold_all_and_then_equals_a_full_one(tmp_path: Path) -> None:
    tensors = _new_tensors()
    assert _verify(tmp_path, tensors, partial=True) == _verify(tmp_path, tensors)


def test_an_alias_may_come_with_its_canonical_tensor_in_a_partial_update(tmp_path: Path) -> None:
    embed = _new_tensors()["embed.weight"]
    verified = _verify(tmp_path, {"embed.weight": embed, "head.weight": embed.clone()}, partial=True)
    assert [name for name, _ in verified.writes()] == ["embed.weight"]


@pytest.mark.parametrize(
    ("tensors", "place", "message"),
    [
        ({}, ("files",), "hold no tensor: a partial update has at least one"),
        (
            {"extra.weight": torch.zeros(1)},
            ("files", "0.safetensors", "extra.weight"),
            "the model has no such tensor",
        ),
        (
            {"norm.weight": torch.zeros(2)},
            ("files", "0.safetensors", "norm.weight"),
            "is float32 [2], the model needs float32 [3]",
        ),
        (
            {"norm.weight": torch.full((3,), float("inf"))},
            ("files", "0.safetensors", "norm.weight"),
            "has values that are not finite (NaN or infinite)",
        ),
        (
            {"head.weight": torch.zeros(320, 2)},
            ("tensors", "embed.weight"),
            "is missing, the model needs float32 [320, 2]; it was sent as head.weight: "
            "send it under its canonical name",
        ),
        (
            {"embed.weight": torch.zeros(320, 2), "head.weight": torch.ones(320, 2)},
            ("files", "0.safetensors", "head.weight"),
            "is tied to embed.weight but has different values",
        ),
    ],
)
def test_what_is_wrong_with_a_partial_update_is_refused_by_name(
    tmp_path: Path, tensors: Tensors, place: tuple[str, ...], message: str
) -> None:
    assert _refusals(tmp_path, tensors, partial=True) == {place: message}


def test_a_tensor_that_comes_twice_is_refused_in_a_partial_update_too(tmp_path: Path) -> None:
    norm = {"norm.weight": torch.zeros(3)}
    assert set(_refusals(tmp_path, norm, norm, partial=True)) == {("files", "1.safetensors", "norm.weight")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"not a safetensors file at all",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"F32"', b'"X32"'),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(_new_tensors(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidRequestError) as refused:
        verify_tensors({"a.safetensors": path}, _served())
    first = refused.value.errors[0]
    assert first.loc == ["files", "a.safetensors"]
    assert first.msg.startswith("not a safetensors file")


@pytest.mark.parametrize("name", sorted(ELEMENT_TYPES))
def test_every_dtype_that_a_client_can_send_can_be_verified(tmp_path: Path, name: str) -> None:
    buffer = torch.tensor([1, 0, 1]).to(getattr(torch, name))
    save_file({"buffer": buffer}, tmp_path / "model.safetensors")
    served = describe("buffer", torch.zeros_like(buffer))
    verified = verify_tensors({"model.safetensors": tmp_path / "model.safetensors"}, [served])
    assert [info.checksum for info in verified.tensors] == [describe("buffer", buffer).checksum]
    written = torch.zeros_like(buffer)
    for _, write in verified.writes():
        write(written)
    assert torch.equal(written, buffer)


def _header(num_names: int, *, name: str = "unknown.{}.weight") -> bytes:
    """A file of ``num_names`` tensors that hold nothing."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({name.format(index): entry for index in range(num_names)}).encode()
    return len(text).to_bytes(8, "little") + text


def test_unknown_names_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_header(100_000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError) as refused:
            verify_tensors({path.name: path}, _served())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "100002 validation errors, the first 100 are listed" in refused.value.detail
    assert len(refused.value.errors) == 100
    assert peak_bytes < 32 << 20


def test_a_list_of_tensors_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(InvalidRequestError) as refused:
        verify_tensors({path.name: path}, _served())
    assert f"its header would have {MAX_HEADER_BYTES + 1} bytes" in refused.value.errors[0].msg


def test_a_name_of_any_length_is_told_in_part(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_header(1, name="x" * 1_000_000))
    with pytest.raises(InvalidRequestError) as refused:
        verify_tensors({path.name: path}, _served())
    assert max(len(str(place)) for place in refused.value.errors) < 1000
