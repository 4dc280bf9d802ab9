from collections.abc import Callable
from itertools import accumulate, cycle

import pytest
import torch

from vigor_service.engine.ops.gram import (
    gram_blocks,
    inner_product_,
    measured_triangle_share,
    triangle_share,
    weighted_gram_blocks,
)


def _clock(triangle_seconds: float, whole_seconds: float) -> Callable[[], float]:
    """Return a clock that shows these durations in turn."""
    times = accumulate(cycle([0.0, triangle_seconds, 0.0, whole_seconds]))
    return lambda: next(times)


@pytest.mark.parametrize(("triangle", "share"), [(0.75, 0.75), (3.0, 1.0), (0.1, 0.5)])
def test_the_share_of_a_triangle_is_that_of_the_times_and_stays_between_a_half_and_one(
    triangle: float, share: float
) -> None:
    assert measured_triangle_share(_clock(triangle, 1.0)) == pytest.approx(share)


def test_the_share_is_measured_once() -> None:
    assert 0.5 <= triangle_share() <= 1.0
    assert triangle_share() == triangle_share()


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 200])
def test_the_inner_product_of_two_triangles_is_that_of_the_whole_matrices(num_rows: int) -> None:
    left, right = torch.randn(num_rows, 40), torch.randn(num_rows, 24)
    whole = (left.double() @ left.double().T * (right.double() @ right.double().T)).sum()
    found = inner_product_(gram_blocks(left), weighted_gram_blocks(right))
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)
