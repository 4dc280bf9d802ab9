"""Element types that several parts of the engine treat alike."""

from __future__ import annotations

import torch

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
KERNEL_DTYPES = (torch.float32, *SIXTEEN_BITS)
"""Dtypes that the GPU kernels support: those that models are served in on a GPU."""
