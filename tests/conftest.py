"""Where there is no CUDA device, Triton kernels run in its interpreter; Triton reads this when it is first imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
