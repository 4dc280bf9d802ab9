"""Common parts of all Triton kernels: the check of their inputs, their launch, and one error for failures."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs  # pyright: ignore[reportMissingTypeStubs]
from triton.errors import TritonError  # pyright: ignore[reportMissingTypeStubs]

from vigor_service.engine.ops.autotune import UnavailableError
from vigor_service.engine.ops.dtypes import KERNEL_DTYPES
from vigor_service.engine.ops.kernels.row_ranges import RowRanges


class Tile(NamedTuple):
    """What one program computes at once, as sizes by the names of the kernel's constants, and how it is compiled."""

    sizes: Mapping[str, int]
    num_warps: int
    num_stages: int

    def constants(self) -> dict[str, Any]:
        """Return the constants and options that the kernel is compiled with.

        Triton's interpreter does not multiply bfloat16, so operands are widened for it.
        """
        return {
            **self.sizes,
            "WIDEN": knobs.runtime.interpret,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }


def check_inputs(x_NI: Tensor, gradient_NO: Tensor) -> None:
    """Check that the kernels support both matrices.

    Raises:
        ValueError: they are not two matrices with equally many rows, of one supported dtype, on one device.
    """
    shapes, dtypes = (tuple(x_NI.shape), tuple(gradient_NO.shape)), (x_NI.dtype, gradient_NO.dtype)
    if x_NI.dim() != 2 or gradient_NO.dim() != 2 or len(x_NI) != len(gradient_NO):
        raise ValueError(f"expected two matrices with equally many rows, not {shapes}")
    if dtypes[0] not in KERNEL_DTYPES or dtypes[0] != dtypes[1]:
        raise ValueError(f"expected one dtype of {KERNEL_DTYPES}, not {dtypes}")
    if x_NI.device != gradient_NO.device:
        raise ValueError(f"expected one device, not {x_NI.device} and {gradient_NO.device}")


def launch(kernel: Any, x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges, partials_BP: Tensor, tile: Tile) -> None:  # noqa: ANN401 - Triton's
    """Run one program of the kernel for each of P partial sums of each of B ranges; it writes that partial sum.

    Raises:
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    with launching(kernel.__name__, x_NI):
        kernel[(partials_BP.shape[1], len(ranges.bounds))](
            x_NI,
            gradient_NO,
            ranges.bounds_B2,
            partials_BP,
            x_NI.shape[1],
            gradient_NO.shape[1],
            x_NI.stride(0),
            x_NI.stride(1),
            gradient_NO.stride(0),
            gradient_NO.stride(1),
            **tile.constants(),
        )


@contextmanager
def launching(kernel: str, operand: Tensor) -> Generator[None]:
    """Within this context, launch on the operand's device; turn errors of Triton, its C compiler or driver into one.

    Raises:
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    try:
        with torch.cuda.device_of(operand):  # Triton launches on the current device
            yield
    except (TritonError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UnavailableError(f"the Triton kernel {kernel} does not run: {error}") from error
