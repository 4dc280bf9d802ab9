"""The hand-written safetensors stream, read back by the library."""

from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tests.client.fake_service import describe
from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import raw_bytes
from vigor_client.weight_format.element_types import ELEMENT_TYPES
from vigor_client.weight_format.safetensors_stream import header, split_into_files, tensor_num_bytes


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    infos = [describe(name, tensor) for name, tensor in tensors.items()]
    (ordered,) = split_into_files(infos, max_file_bytes=1 << 30)
    return header(ordered) + b"".join(raw_bytes(tensors[info.name].flatten()) for info in ordered)


def test_the_library_reads_every_dtype_back_bit_for_bit() -> None:
    tensors = {
        f"{position}.{dtype}": (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, dtype))
        for position, dtype in enumerate(ELEMENT_TYPES)
    }
    read = safetensors.torch.load(written(tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 7)])
def test_odd_shapes_survive(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"odd": torch.randn(shape), "beside": torch.randn(3).bfloat16()}
    path = tmp_path / "f.safetensors"
    path.write_bytes(written(tensors))
    with safetensors.safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("odd"), tensors["odd"])
        assert torch.equal(file.get_tensor("beside"), tensors["beside"])


def test_the_header_keeps_the_data_aligned() -> None:
    for name in ("a", "ab", "abc", "äöü", 'quo"te'):
        assert len(header([TensorInfo(name=name, dtype="float32", shape=[1], checksum="")])) % 8 == 0


def info(name: str, num_elements: int, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=[num_elements], checksum="")


def test_files_stay_within_their_size_and_a_larger_tensor_stands_alone() -> None:
    infos = [info("a", 10), info("b", 10), info("c", 100), info("d", 10), info("e", 10)]
    files = split_into_files(infos, max_file_bytes=80)
    assert [[tensor.name for tensor in file] for file in files] == [["a", "b"], ["c"], ["d", "e"]]


def test_every_tensor_starts_at_a_multiple_of_its_element_size() -> None:
    infos = [info("narrow", 3, "bfloat16"), info("byte", 1, "uint8"), info("wide", 2), info("widest", 1, "int64")]
    (ordered,) = split_into_files(infos, max_file_bytes=1000)
    start = 0
    for tensor in ordered:
        assert start % ELEMENT_TYPES[tensor.dtype].num_bytes == 0
        start += tensor_num_bytes(tensor)
