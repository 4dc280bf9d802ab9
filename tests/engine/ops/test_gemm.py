"""The product of linear layers equals torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.support.preloaded_process import in_preloaded_process
from vigor_service.engine.memory.malloc import resident_bytes
from vigor_service.engine.ops import gemm


@pytest.mark.parametrize("num_rows", [0, 1, 3, 17, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_equals_torchs_linear(num_rows: int, dtype: torch.dtype, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x_MI = torch.randn(num_rows, 33, generator=generator).to(dtype)
    weight_OI = torch.randn(20, 33, generator=generator).to(dtype)
    bias_O = torch.randn(20, generator=generator).to(dtype) if with_bias else None
    expected = F.linear(x_MI.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(gemm.linear(x_MI, weight_OI, bias_O).double(), expected, rtol=tolerance, atol=tolerance)


def test_views_are_taken_as_they_are() -> None:
    x_MI, weight_OI = torch.randn(40, 14)[::2, ::2], torch.randn(7, 9).T
    expected = (x_MI.double() @ weight_OI.double().T).float()
    torch.testing.assert_close(gemm.linear(x_MI, weight_OI), expected)


def test_leading_dimensions_stay() -> None:
    x_1NI, weight_OI = torch.randn(1, 5, 8), torch.randn(3, 8)
    torch.testing.assert_close(gemm.linear(x_1NI, weight_OI), F.linear(x_1NI, weight_OI))


def test_a_few_rows_of_a_long_sum_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x_MI, weight_OI = torch.randn(3, 49152, generator=generator), torch.randn(16, 49152, generator=generator)
    expected = x_MI.double() @ weight_OI.double().T
    error = (gemm.linear(x_MI, weight_OI).double() - expected).norm() / expected.norm()
    assert error <= 1e-5


def test_every_number_of_rows_does_not_leave_code_of_its_own_behind() -> None:
    """Without rows in eights the process grows by 170 MiB, with them by 31."""
    assert in_preloaded_process(growth_by_numbers_of_rows) < 80 << 20


def growth_by_numbers_of_rows() -> int:
    """Return how many bytes a process grows by where every product has another number of rows."""
    weight_OI = torch.randn(96, 64)
    gemm.linear(torch.randn(8, 64), weight_OI)
    before = resident_bytes()
    for num_rows in range(1, 401):
        gemm.linear(torch.randn(num_rows, 64), weight_OI)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    return after - before
