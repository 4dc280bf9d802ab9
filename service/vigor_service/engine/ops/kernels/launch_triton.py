"""What every Triton kernel here has in common: which inputs it takes, and how a failed launch is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.errors import TritonError

from vigor_service.engine.ops.autotune import UnavailableError
from vigor_service.engine.ops.kernels.row_ranges import RowRanges

NormKernel = Callable[[Tensor, Tensor, RowRanges], Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_inputs(x_NI: Tensor, gradient_NO: Tensor) -> None:
    """Make sure that the kernels understand both matrices.

    Raises:
        ValueError: they are not two matrices with equally many rows, of one dtype that kernels take, on one device.
    """
    shapes, dtypes = (tuple(x_NI.shape), tuple(gradient_NO.shape)), (x_NI.dtype, gradient_NO.dtype)
    if x_NI.dim() != 2 or gradient_NO.dim() != 2 or len(x_NI) != len(gradient_NO):
        raise ValueError(f"expected two matrices with equally many rows, not {shapes}")
    if dtypes[0] not in DTYPES or dtypes[0] != dtypes[1]:
        raise ValueError(f"expected one dtype of {DTYPES}, not {dtypes}")
    if x_NI.device != gradient_NO.device:
        raise ValueError(f"expected one device, not {x_NI.device} and {gradient_NO.device}")


def compile_options(num_warps: int, num_stages: int) -> dict[str, Any]:
    """What all kernels are compiled with. Triton's interpreter multiplies no bfloat16: operands are widened for it."""
    return {
        "WIDEN": knobs.runtime.interpret,
        "num_warps": num_warps,
        "num_stages": num_stages,
        "enable_fp_fusion": True,
    }


@contextmanager
def launching(kernel: str, operand: Tensor) -> Iterator[None]:
    """Launch on the operand's device; tell by one error what Triton, its C compiler or the driver refuses.

    Raises:
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    try:
        with torch.cuda.device_of(operand):  # Triton launches on the current device
            yield
    except (TritonError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UnavailableError(f"the Triton kernel {kernel} does not run: {error}") from error
