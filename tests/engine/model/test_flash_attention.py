"""What is handed to FlashAttention means the same as attention run sequence by sequence."""

from __future__ import annotations

from inspect import signature
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from tests.engine.conftest import CUDA
from tests.engine.model.test_packed_attention import naive_attention
from vigor_service.engine.model import flash_attention
from vigor_service.engine.model.packed_attention import _attend_one

LENGTHS = [7, 1, 12]
CPU = torch.device("cpu")


def attention_tensors(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 16, generator=generator).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    return query, key, value


def plain_kernel(
    query_NHd: Tensor,
    key_Nhd: Tensor,
    value_Nhd: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What ``varlen_attn`` documents, by the naive loop."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert enable_gqa
    assert (window_size[1], max_q, max_k) == (0, max(LENGTHS), max(LENGTHS))
    scaling = query_NHd.shape[-1] ** -0.5 if scale is None else scale
    window = None if window_size[0] == -1 else window_size[0] + 1  # tokens before the row's own
    outputs = [
        naive_attention(
            *(tensor[start:stop].transpose(0, 1) for tensor in (query_NHd, key_Nhd, value_Nhd)),
            scaling=scaling,
            window=window,
            softcap=None,
        ).transpose(0, 1)
        for start, stop in pairwise(starts_q.tolist())
    ]
    return torch.cat(outputs)


def by_sequence(tensors: tuple[Tensor, Tensor, Tensor], scaling: float | None, window: int | None) -> Tensor:
    pieces = zip(*(tensor.split(LENGTHS, dim=2) for tensor in tensors), strict=True)
    return torch.cat([_attend_one(q, k, v, scaling, window, None, None) for q, k, v in pieces], dim=2).transpose(1, 2)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_its_arguments_mean_attention_within_each_sequence(window: int | None, scaling: float | None) -> None:
    tensors = attention_tensors(CPU, torch.float32)
    output_1NHd = flash_attention.attend(*tensors, LENGTHS, scaling, window, kernel=plain_kernel)
    torch.testing.assert_close(output_1NHd, by_sequence(tensors, scaling, window))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_on_a_device_outputs_and_gradients_are_those_of_each_sequence(
    window: int | None, dtype: torch.dtype, device: str
) -> None:
    tensors = attention_tensors(torch.device(device), dtype)
    assert flash_attention.serves(tensors[0], tensors[2])
    output_1NHd = flash_attention.attend(*tensors, LENGTHS, 0.3, window)
    expected = by_sequence(tensors, 0.3, window)
    torch.testing.assert_close(output_1NHd, expected, rtol=2e-2, atol=2e-2)
    gradient = torch.randn_like(expected)
    for own, wanted in zip(
        *(torch.autograd.grad(out, tensors, gradient) for out in (output_1NHd, expected)), strict=True
    ):
        torch.testing.assert_close(own, wanted, rtol=2e-2, atol=2e-2)


def test_torchs_function_takes_these_arguments() -> None:
    arguments = signature(varlen_attn).parameters
    assert list(arguments)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert flash_attention._IS_COMPLETE


def test_starts_are_kept_for_the_batch() -> None:
    starts = flash_attention.sequence_starts((7, 1, 12), CPU)
    assert starts.tolist() == [0, 7, 8, 20]
    assert flash_attention.sequence_starts((7, 1, 12), CPU) is starts


@pytest.mark.parametrize(
    ("dtype", "num_features", "num_value_features", "taken"),
    [
        (torch.bfloat16, 64, 64, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 64, 64, False),
        (torch.bfloat16, 60, 60, False),
        (torch.bfloat16, 264, 264, False),
        (torch.bfloat16, 192, 128, False),  # multi-head latent attention
    ],
)
def test_only_what_flash_attention_takes_goes_to_it(
    dtype: torch.dtype, num_features: int, num_value_features: int, taken: bool
) -> None:
    query, value = (torch.ones(1, 2, 3, size, dtype=dtype) for size in (num_features, num_value_features))
    assert flash_attention.takes(query, value) == taken
    assert not flash_attention.serves(query, value)  # not on a CPU
