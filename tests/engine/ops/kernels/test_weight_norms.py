"""Norms of weight gradients by measured cost equal those of the gradients, whichever implementation is the fastest."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import HAS_CUDA
from vigor_service.engine.ops.autotune import Autotuner, Implementation
from vigor_service.engine.ops.kernels.gram_norm import gram_norms
from vigor_service.engine.ops.kernels.product_norm import product_norms
from vigor_service.engine.ops.kernels.weight_norms import (
    WeightWork,
    norm_implementations,
    rounded_length,
    typical_length,
    weight_norms,
)

SLICES = [slice(0, 1), slice(1, 150), slice(150, 167), slice(167, 300)]


class Stopwatch:
    """A timer that finds one implementation after the other faster than all others."""

    def __init__(self, winner: int) -> None:
        self.winner = winner
        self.num_timed = 0

    def __call__(self, implementation: Implementation) -> float:
        implementation()
        self.num_timed += 1
        return 0.0 if (self.num_timed - 1) % 2 == self.winner else 1.0


@pytest.mark.parametrize("winner", [0, 1])
def test_norms_equal_those_of_the_gradients_whichever_implementation_wins(winner: int, device: torch.device) -> None:
    x_NI, gradient_NO = torch.randn(300, 37, device=device), torch.randn(300, 23, device=device)
    stopwatch = Stopwatch(winner)
    autotuner = Autotuner(stopwatch)
    implementations = {"Gram": gram_norms, "product": product_norms}
    expected = [(gradient_NO[rows].double().T @ x_NI[rows].double()).square().sum() for rows in SLICES]
    for _ in range(2):
        norms_B = weight_norms(x_NI, gradient_NO, SLICES, autotuner=autotuner, implementations=implementations)
        torch.testing.assert_close(norms_B, torch.stack(expected), rtol=1e-5, atol=0)
    assert stopwatch.num_timed == len(implementations)  # the first time


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_implementation_that_is_measured_fastest_gives_the_norms(dtype: torch.dtype) -> None:
    x_NI = torch.randn(300, 96, device="cuda", dtype=dtype)
    gradient_NO = torch.randn(300, 80, device="cuda", dtype=dtype)
    expected = [(gradient_NO[rows].double().T @ x_NI[rows].double()).square().sum() for rows in SLICES]
    norms_B = weight_norms(x_NI, gradient_NO, SLICES)
    tolerance = 1e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(norms_B, torch.stack(expected), rtol=tolerance, atol=0)


def work(num_inputs: int, num_outputs: int, length: int, dtype: torch.dtype = torch.bfloat16) -> WeightWork:
    return WeightWork(num_inputs, num_outputs, dtype, length, torch.device("cpu"))


def test_an_implementation_that_needs_many_times_the_operations_is_not_timed() -> None:
    assert {name.split()[0] for name in norm_implementations(work(1024, 1024, 512))} == {"Gram", "product"}
    assert {name.split()[0] for name in norm_implementations(work(1024, 1024, 4096))} == {"product"}
    assert {name.split()[0] for name in norm_implementations(work(16384, 16384, 64))} == {"Gram"}
    assert {name.split()[0] for name in norm_implementations(work(8, 1024, 2048))} == {"product"}  # LoRA


def test_kernels_are_candidates_for_the_dtypes_that_they_take() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux alone")
    assert set(norm_implementations(work(64, 64, 64))) == {
        "Gram in torch",
        "Gram in Triton",
        "product in torch",
        "product in Triton",
    }
    assert set(norm_implementations(work(64, 64, 64, torch.float64))) == {"Gram in torch", "product in torch"}


@pytest.mark.parametrize("name", ["Gram in Triton", "product in Triton"])
def test_the_kernels_of_the_choice_are_those_of_triton(name: str, kernel_device: torch.device) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux alone")
    x_NI, gradient_NO = torch.randn(300, 37, device=kernel_device), torch.randn(300, 23, device=kernel_device)
    implementations = {name: norm_implementations(work(64, 64, 64))[name]}
    norms_B = weight_norms(
        x_NI, gradient_NO, SLICES, autotuner=Autotuner(lambda _: 0.0), implementations=implementations
    )
    expected = [(gradient_NO[rows].double().T @ x_NI[rows].double()).square().sum() for rows in SLICES]
    torch.testing.assert_close(norms_B, torch.stack(expected), rtol=1e-5, atol=0)


def test_lengths_are_rounded_up_by_less_than_a_half() -> None:
    assert [rounded_length(length) for length in (1, 64, 65, 96, 97, 128, 129, 192, 193, 1025)] == [
        *(64, 64, 96, 96, 128, 128, 192, 192, 256, 1536)
    ]
    assert all(length <= rounded_length(length) < 1.5 * length for length in range(64, 5000))


def test_the_length_that_stands_for_a_batch_is_that_of_most_of_its_tokens() -> None:
    assert typical_length([70]) == 96
    assert typical_length([1000, 10, 10, 10]) == 1024
    assert typical_length([1000, *[100] * 40]) == 384  # (1000² + 40 · 100²) / 5000 = 280
