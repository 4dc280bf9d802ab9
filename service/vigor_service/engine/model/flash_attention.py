"""Attention of all packed sequences in one call of FlashAttention, on a CUDA device.

``torch.nn.attention.varlen`` is new: if torch's function lacks a scale or windows, it is not used. FlashAttention
supports grouped heads in any case; from version 2.12 on, torch needs a flag for them.
Shapes: N tokens, H query heads, h key and value heads, d features of a head, B sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import signature
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from vigor_service.engine.ops.dtypes import SIXTEEN_BITS

_PARAMETERS = signature(varlen_attn).parameters.keys()
_IS_COMPLETE = {"scale", "window_size"} <= _PARAMETERS
_GROUPED_HEADS = {"enable_gqa": True} if "enable_gqa" in _PARAMETERS else {}
_LARGEST_HEAD = 256
_FIRST_CAPABILITY = (8, 0)  # of FlashAttention 2: Ampere


def serves(query_1HNd: Tensor, value_1hNd: Tensor) -> bool:
    """Return whether FlashAttention supports these tensors on their device."""
    if not (_IS_COMPLETE and query_1HNd.is_cuda and takes(query_1HNd, value_1hNd)):
        return False
    return torch.cuda.get_device_capability(query_1HNd.device) >= _FIRST_CAPABILITY


def takes(query_1HNd: Tensor, value_1hNd: Tensor) -> bool:
    """Return whether FlashAttention supports the dtype and head size: 16 bits, a multiple of 8 up to 256 features."""
    num_features = query_1HNd.shape[-1]
    fits = num_features == value_1hNd.shape[-1] and num_features <= _LARGEST_HEAD and num_features % 8 == 0
    return fits and query_1HNd.dtype in SIXTEEN_BITS


def attend(
    query_1HNd: Tensor,
    key_1hNd: Tensor,
    value_1hNd: Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    sliding_window: int | None,
    *,
    kernel: Callable[..., Tensor] = varlen_attn,  # pyright: ignore[reportArgumentType] - a pair only with return_aux
) -> Tensor:
    """Return the output (1, N, H, d) of causal attention that runs sequence by sequence."""
    query_NHd, key_Nhd, value_Nhd = (tensor[0].transpose(0, 1) for tensor in (query_1HNd, key_1hNd, value_1hNd))
    starts = sequence_starts(tuple(lengths), query_1HNd.device)
    output_NHd = kernel(
        query_NHd,
        key_Nhd,
        value_Nhd,
        starts,
        starts,
        max(lengths),
        max(lengths),
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),  # tokens before, tokens after
        **_GROUPED_HEADS,
    )
    return output_NHd[None]


@lru_cache(maxsize=16)
def sequence_starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return each sequence's first row and N, int32, shape (B + 1,). Cached: one copy per batch to the device."""
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)
