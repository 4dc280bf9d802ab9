"""Devices that the engine's tests run on: the CPU always, a CUDA device where there is one."""

from __future__ import annotations

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")])
INTERPRETED = pytest.param(
    "cpu", marks=pytest.mark.skipif(HAS_CUDA, reason="Triton compiles for the CUDA device, and interprets nothing")
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test sees the same random numbers each time it runs."""
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[INTERPRETED, CUDA])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton kernels run: on the CUDA device, or else in Triton's interpreter."""
    return torch.device(request.param)
