"""The product of linear layers equals torch's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from tests.support.preloaded_process import in_preloaded_process
from vigor_service.engine.memory.malloc import resident_bytes
from vigor_service.engine.ops import gemm
from vigor_service.engine.ops.library_choice import TRIES


@pytest.fixture(params=[gemm.ONEDNN, gemm.TORCH, None], autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The library that computes all products; None: the faster one."""
    gemm.CHOICE.forced = request.param
    yield request.param
    gemm.CHOICE.forced = None


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


@pytest.mark.parametrize("num_rows", [1, 3, 9, 130])
def test_sums_over_a_vocabulary_are_exact(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient_MV = torch.randn(num_rows, 49_157, generator=generator).softmax(-1)
    weight_VD = torch.randn(49_157, 16, generator=generator)
    expected = gradient_MV.double() @ weight_VD.double()
    error = (gemm.linear_of_long_sums(gradient_MV, weight_VD.T) - expected).norm() / expected.norm()
    assert error <= 5e-6


def test_products_of_some_size_are_tried_with_each_library(library: str | None) -> None:
    x_MI, weight_OI = torch.randn(130, 128), torch.randn(137, 128)
    before = sum(gemm.CHOICE.counts().values())
    for _ in range(2 * TRIES):
        torch.testing.assert_close(gemm.linear(x_MI, weight_OI), F.linear(x_MI, weight_OI))
    assert sum(gemm.CHOICE.counts().values()) - before == (library is None)


def test_every_number_of_rows_does_not_leave_code_of_its_own_behind() -> None:
    """Without rows in eights the process grows by 170 MiB, with them by 31."""
    assert in_preloaded_process(growth_by_numbers_of_rows) < 80 << 20


def growth_by_numbers_of_rows() -> int:
    """Return how many bytes a process grows by where every product has another number of rows."""
    gemm.CHOICE.forced = gemm.ONEDNN
    weight_OI = torch.randn(96, 64)
    gemm.linear(torch.randn(8, 64), weight_OI)
    before = resident_bytes()
    for num_rows in range(1, 401):
        gemm.linear(torch.randn(num_rows, 64), weight_OI)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    return after - before
