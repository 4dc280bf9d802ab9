"""Agreement of two orders, against values worked out by hand or taken from scipy's documentation."""

from __future__ import annotations

import pytest

from benchmarks.agreement import kendall_tau_b, same_best, spearman_rho


@pytest.mark.parametrize(
    ("left", "right", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3], [1, 3, 2], 1 / 3),  # two pairs agree, one does not
        ([1, 1, 2], [1, 2, 3], 2 / 6**0.5),  # two pairs agree, the left side ties the third
        ([1, 1, 2], [5, 5, 6], 1),  # ties of both sides are no disagreement
        ([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], -0.47140452079103173),  # scipy.stats.kendalltau
    ],
)
def test_kendalls_tau_b(left: list[float], right: list[float], tau: float) -> None:
    assert kendall_tau_b(left, right) == pytest.approx(tau)
    assert kendall_tau_b(right, left) == pytest.approx(tau)


@pytest.mark.parametrize(("left", "right"), [([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1], [1])])
def test_what_has_no_order_has_no_agreement(left: list[float], right: list[float]) -> None:
    with pytest.raises(ValueError, match="no order"):
        kendall_tau_b(left, right)


def test_spearmans_correlation() -> None:
    assert spearman_rho([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman_rho([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)  # scipy.stats.spearmanr


def test_the_best_is_the_smallest_and_any_of_several_will_do() -> None:
    assert same_best([3, 1, 2], [9, 4, 5])
    assert not same_best([3, 1, 2], [9, 5, 4])
    assert same_best([1, 1, 2], [5, 4, 6])
