"""What a panel is, and the queries that several panels ask.

In a query ``$of`` stands for the chosen instances, ``$window`` for the time that a rate is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel: ``queries`` are legend and expression; its place follows from the order."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"


def quantiles(histogram: str, *, where: str = "", of: tuple[float, ...] = (0.5, 0.95, 0.99)) -> dict[str, str]:
    """Return a query for each quantile of a histogram, all instances together."""
    rates = f"sum by (le) (rate({histogram}_bucket{{{where}$of}}[$window]))"
    return {f"p{100 * each:g}": f"histogram_quantile({each}, {rates})" for each in of}


def buckets(histogram: str) -> dict[str, str]:
    """Return the query of a heat map: what came into each bucket."""
    return {"{{le}}": f"sum by (le) (increase({histogram}_bucket{{$of}}[$window]))"}


def rate(counter: str, *, where: str = "", by: str = "") -> str:
    """Return the rate of a counter, summed over what is not in ``by``."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({counter}{{{where}$of}}[$window]))"


def ratio(above: str, below: str) -> str:
    """Return the rate of one counter by that of another."""
    return f"{rate(above)} / {rate(below)}"
