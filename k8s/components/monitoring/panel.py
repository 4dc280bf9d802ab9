"""What a panel is, and the queries that several panels ask.

In a query, ``$of`` stands for the selected instances, and ``$window`` for the range of a rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries`` maps legends to expressions; the order of panels decides their places."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: Literal["timeseries", "stat", "heatmap", "state-timeline"] = "timeseries"
    states: tuple[tuple[str, str], ...] = ()
    """Name and colour of the values 0, 1, … of a state."""
    warn_above: float | None = None
    """Threshold in the panel's unit: a red line, and red above it."""


def quantiles(
    histogram: str, *, where: str = "", of: tuple[float, ...] = (0.5, 0.95, 0.99), apart: bool = False
) -> dict[str, str]:
    """Return a query for each quantile of a histogram, over all instances or, if ``apart``, for each instance."""
    rates = f"sum by (le{', instance' if apart else ''}) (rate({histogram}_bucket{{{where}$of}}[$window]))"
    legend = " {{instance}}" if apart else ""
    return {f"p{100 * each:g}{legend}": f"histogram_quantile({each}, {rates})" for each in of}


def buckets(histogram: str) -> dict[str, str]:
    """Return the query of a heat map: the increase of each bucket."""
    return {"{{le}}": f"sum by (le) (increase({histogram}_bucket{{$of}}[$window]))"}


def rate(counter: str, *, where: str = "", by: str = "") -> str:
    """Return the query for the rate of a counter, summed over all labels that are not in ``by``."""
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({counter}{{{where}$of}}[$window]))"


def ratio(above: str, below: str, *, by: str = "") -> str:
    """Return the query for the rate of one counter divided by the rate of another."""
    return f"{rate(above, by=by)} / {rate(below, by=by)}"
