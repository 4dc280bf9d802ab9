"""Grafana's own schema has every field of the dashboards: what its typed models do not know is lost in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.monitoring.observed import MONITORING

OF_PROMETHEUS = {"annotations.list[0].titleFormat", "annotations.list[0].textFormat"}
"""Fields that the Prometheus data source adds to annotations, which the schema of dashboards leaves to it."""

register_default_plugins()


@pytest.fixture(params=["operations", "reward"])
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((MONITORING / f"dashboards/{request.param}.json").read_text())


def through_the_models(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return the dashboard after Grafana's models have read and written it; they add their defaults."""
    read = Dashboard.from_json(copy.deepcopy(dashboard))
    return json.loads(JSONEncoder().encode(read))


def lost(before: Any, after: Any, place: str = "") -> Iterator[str]:  # noqa: ANN401 - JSON
    """Return the places in ``before`` whose value is missing or different in ``after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            inner = f"{place}.{name}".lstrip(".")
            yield from lost(value, after[name], inner) if name in after else (inner,)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from lost(*pair, f"{place}[{index}]")
    elif before != after:
        yield place


def test_the_schema_has_every_field(dashboard: dict[str, Any]) -> None:
    assert set(lost(dashboard, through_the_models(dashboard))) == OF_PROMETHEUS


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((), "graphToolTip"),
        (("panels", 1), "descripton"),
        (("panels", 1, "targets", 0), "legendFormt"),
        (("panels", 1, "fieldConfig", "defaults"), "units"),
        (("panels", 1, "gridPos"), "width"),
        (("templating", "list", 1), "includeALL"),
    ],
    ids=str,
)
def test_a_misspelled_field_is_seen(dashboard: dict[str, Any], place: tuple[str | int, ...], name: str) -> None:
    part: Any = dashboard
    for step in place:
        part = part[step]
    part[name] = "misspelled"
    found = set(lost(dashboard, through_the_models(dashboard))) - OF_PROMETHEUS
    assert len(found) == 1
    assert found.pop().endswith(name)
