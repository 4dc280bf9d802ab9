"""The changes of a tensor turn its old bytes into its new ones, bit for bit, and nothing else passes for changes."""

from __future__ import annotations

import struct

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vigor_client import InvalidDeltaError
from vigor_client.weight_format.delta import apply_changes_, decode_changes, encode_changes
from vigor_client.weight_format.digest import raw_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def bits(tensor: Tensor) -> bytes:
    return bytes(raw_bytes(tensor))


def applied(old: Tensor, new: Tensor) -> Tensor:
    compressed = encode_changes(raw_bytes(old), raw_bytes(new))
    patched = old.clone(memory_format=torch.preserve_format)
    if compressed is not None:
        apply_changes_(patched, decode_changes(compressed, num_bytes=old.nbytes))
    return patched


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 7), max_size=3),
    changed=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_applying_the_changes_to_the_old_gives_the_new_bit_for_bit(
    dtype: torch.dtype, shape: list[int], changed: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, other = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    new = torch.where(torch.rand(shape, generator=generator) < changed, other, old)
    patched = applied(old, new)
    assert bits(patched) == bits(new)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_zeros_and_nan_payloads_are_bits_like_any_other(dtype: torch.dtype) -> None:
    old = torch.tensor([0.0, 1.0, float("nan")], dtype=dtype)
    new = -old
    assert bits(applied(old, new)) == bits(new) != bits(old)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_with_huge_strides_is_patched_where_it_is(dtype: torch.dtype) -> None:
    memory = torch.zeros(5, 40_000, dtype=dtype)
    old = memory[:, ::20_000]
    new = old + torch.tensor([[1.0, 0.0]], dtype=dtype)
    compressed = encode_changes(raw_bytes(old), raw_bytes(new))
    assert compressed is not None
    apply_changes_(old, decode_changes(compressed, num_bytes=old.nbytes))
    assert torch.equal(memory[:, 0], torch.ones(5, dtype=dtype))
    assert int(memory.count_nonzero()) == 5


def test_what_did_not_change_has_no_changes() -> None:
    tensor = torch.randn(3)
    assert encode_changes(raw_bytes(tensor), raw_bytes(tensor.clone())) is None
    assert encode_changes(b"", b"") is None


def test_the_payload_is_what_slime_documents() -> None:
    compressed = encode_changes(b"abcdefgh", b"abXdefgY")
    assert compressed is not None
    assert zstandard.ZstdDecompressor().decompress(compressed) == struct.pack("<III", 2, 2, 7) + b"XY"


def test_tensors_of_different_sizes_have_no_changes_between_them() -> None:
    with pytest.raises(ValueError, match="from 3 to 4 bytes"):
        encode_changes(b"abc", b"abcd")


def compress(*numbers: int, values: bytes = b"") -> bytes:
    return zstandard.ZstdCompressor().compress(struct.pack(f"<{len(numbers)}I", *numbers) + values)


@pytest.mark.parametrize(
    ("compressed", "reason"),
    [
        (b"", "not compressed"),
        (b"plain bytes", "not compressed"),
        (compress(1, 2, values=b"X")[:-3], "damaged"),
        (compress(1, 2, values=b"X") + b"more", "damaged"),
        (compress(), "no number"),
        (compress(2, 1, values=b"X"), "2 changes in 9 bytes"),
        (compress(1, 8, values=b"X"), "beyond the tensor's 8 bytes"),
        (compress(2, 3, 3, values=b"XY"), "do not ascend"),
        (compress(2, 4, 3, values=b"XY"), "do not ascend"),
        (zstandard.ZstdCompressor().compress(bytes(1000)), "announces 1000 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), "announces"),
    ],
)
def test_bytes_that_are_no_changes_are_refused_with_the_reason(compressed: bytes, reason: str) -> None:
    with pytest.raises(InvalidDeltaError, match=reason):
        decode_changes(compressed, num_bytes=8)
