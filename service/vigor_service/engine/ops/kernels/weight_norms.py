"""Squared norms of weight gradients on a CUDA device, each by the implementation that was the fastest there.

There are four implementations: through Gram matrices or through the gradient itself, in torch or by a Triton kernel.
Which one is the fastest depends on the matrix, the dtype, the lengths and the card, so each is timed on the first work
of a kind. Each takes all sequences of a batch at once: a language model has more launches than the host has time for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from vigor_service.engine.ops.autotune import Autotuner
from vigor_service.engine.ops.dtypes import KERNEL_DTYPES
from vigor_service.engine.ops.kernels.gram_norm import gram_norms
from vigor_service.engine.ops.kernels.product_norm import product_norms
from vigor_service.engine.ops.kernels.row_ranges import RowRanges, row_ranges

logger = logging.getLogger(__name__)

NormImplementation = Callable[[Tensor, Tensor, RowRanges], Tensor]
_SHORTEST_LENGTH = 64  # sequences of fewer tokens are one kind of work
_MOST_OPERATIONS = 4  # a method that needs this many times the operations of the other is not timed


@dataclass(frozen=True, slots=True)
class WeightWork:
    """One kind of work: what the times of the implementations depend on."""

    num_inputs: int
    num_outputs: int
    dtype: torch.dtype
    length: int  # Σ T² / Σ T of its sequences, in tokens: one method costs T², the other T
    device: torch.device

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"norms of {self.num_outputs} × {self.num_inputs} in {dtype}, about {self.length} tokens, {self.device}"


_AUTOTUNER = Autotuner()


def weight_norms(
    x_NI: Tensor,
    gradient_NO: Tensor,
    slices: Sequence[slice],
    *,
    autotuner: Autotuner = _AUTOTUNER,
    implementations: Mapping[str, NormImplementation] | None = None,
) -> Tensor:
    """Return ``‖GᵀA‖²`` for each sequence's rows A of the layer input and G of the output gradient, (B,), float64.

    Raises:
        torch.OutOfMemoryError, UnavailableError: no implementation runs; the former if memory is the reason for one.
    """
    ranges, length = _ranges(tuple((rows.start, rows.stop) for rows in slices), x_NI.device)
    work = WeightWork(x_NI.shape[1], gradient_NO.shape[1], x_NI.dtype, length, x_NI.device)
    candidates = norm_implementations(work) if implementations is None else implementations
    calls = {name: partial(norms, x_NI, gradient_NO, ranges) for name, norms in candidates.items()}
    with torch.cuda.device_of(x_NI):  # times are taken, and kernels launched, on the current device
        return autotuner.run(work, calls)


def norm_implementations(work: WeightWork) -> dict[str, NormImplementation]:
    """Return the implementations that may be the fastest for this kind of work, by name."""
    gram_operations = work.length * (work.num_inputs + work.num_outputs)
    product_operations = work.num_inputs * work.num_outputs
    has_kernels = work.dtype in KERNEL_DTYPES and _has_triton()
    implementations: dict[str, NormImplementation] = {}
    if gram_operations <= _MOST_OPERATIONS * product_operations:
        implementations["Gram in torch"] = gram_norms
        if has_kernels:
            implementations["Gram in Triton"] = _triton_gram_norms
    if product_operations <= _MOST_OPERATIONS * gram_operations:
        implementations["product in torch"] = product_norms
        if has_kernels:
            implementations["product in Triton"] = _triton_product_norms
    return implementations


@cache
def _has_triton() -> bool:
    """Return whether Triton is installed; torch's CUDA builds for Linux install it."""
    has_triton = find_spec("triton") is not None
    if not has_triton:
        logger.warning("norms of weight gradients in torch alone: the package triton is not installed")
    return has_triton


def _triton_gram_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    from vigor_service.engine.ops.kernels import gram_norm_triton

    return gram_norm_triton.gram_norms(x_NI, gradient_NO, ranges)


def _triton_product_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    from vigor_service.engine.ops.kernels import product_norm_triton

    return product_norm_triton.product_norms(x_NI, gradient_NO, ranges)


@lru_cache(maxsize=64)
def _ranges(bounds: tuple[tuple[int, int], ...], device: torch.device) -> tuple[RowRanges, int]:
    """Return the ranges, and their typical length. Cached, so that bounds are copied to the device once per batch."""
    return row_ranges(bounds, device), typical_length([stop - start for start, stop in bounds])


def typical_length(lengths: Sequence[int]) -> int:
    """Return ``Σ T² / Σ T``, rounded as ``rounded_length`` does."""
    return rounded_length(sum(length**2 for length in lengths) // sum(lengths))


def rounded_length(num_tokens: int) -> int:
    """Round up to a power of two or to one and a half of one, and to 64 at least."""
    power = max(_SHORTEST_LENGTH, 1 << (num_tokens - 1).bit_length())
    return power * 3 // 4 if _SHORTEST_LENGTH < num_tokens <= power * 3 // 4 else power
