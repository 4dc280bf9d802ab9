"""The product of linear layers equals torch's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

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
    program = (
        "import torch; from vigor_service.engine.ops.gemm import linear;"
        "from vigor_service.engine.memory.malloc import resident_bytes;"
        "weight = torch.randn(96, 64); linear(torch.randn(8, 64), weight); before = resident_bytes();"
        "[linear(torch.randn(num_rows, 64), weight) for num_rows in range(1, 401)]; print(resident_bytes() - before)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120).stdout
    assert int(output) < 80 << 20
