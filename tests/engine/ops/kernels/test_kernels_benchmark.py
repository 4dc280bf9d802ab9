"""The benchmark of the kernels: its table on any device, its refusal where there is none."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import HAS_CUDA

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux alone")

from benchmarks.kernels import main, matrices, row
from vigor_service.engine.ops.autotune import Implementation


def test_a_row_has_each_way_their_ratios_and_the_fastest(kernel_device: torch.device) -> None:
    milliseconds = iter([3.0, 1.5, 0.5, 1.0])

    def timer(implementation: Implementation) -> float:
        implementation()
        return next(milliseconds) / 1000

    shown = row("tiny", ("q, o", (24, 40)), 20, 2, torch.float32, kernel_device, timer)
    *cells, error = [cell.strip() for cell in shown.strip("|").split("|")]
    assert cells == ["tiny", "q, o", "20", "3.000", "1.500", "0.500", "1.000", "2.00", "0.50", "product in torch"]
    assert float(error) <= 1e-5


def test_the_matrices_are_those_of_a_decoder_layer() -> None:
    assert matrices(8, 2, 20) == {"q, o": (8, 8), "k, v": (8, 2), "gate, up": (8, 20), "down": (20, 8)}


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "kernels are timed on a CUDA device, and there is none" in capsys.readouterr().err
