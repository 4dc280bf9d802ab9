"""The Grafana dashboards: ``python -m k8s.components.monitoring.dashboards`` writes them into ``dashboards/``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s.components.monitoring.operations import OPERATIONS
from k8s.components.monitoring.panel import Panel
from k8s.components.monitoring.reward import REWARD

DIRECTORY = Path(__file__).parent / "dashboards"
PANELS_IN_A_LINE = 3
_WIDTH, _HEIGHT = 24 // PANELS_IN_A_LINE, 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(uid: str, title: str, rows: dict[str, list[Panel]]) -> dict[str, Any]:
    """Return the JSON of a dashboard, as Grafana imports it."""
    return {
        "uid": uid,
        "title": title,
        "tags": ["vigor"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _instance_variable()]},
        "panels": list(_placed(rows)),
    }


def _placed(rows: dict[str, list[Panel]]) -> Iterator[dict[str, Any]]:
    y, number = 0, 0
    for title, panels in rows.items():
        number += 1
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}
        y += 1
        for start in range(0, len(panels), PANELS_IN_A_LINE):
            for column, panel in enumerate(panels[start : start + PANELS_IN_A_LINE]):
                number += 1
                place = {"x": column * _WIDTH, "y": y, "w": _WIDTH, "h": _HEIGHT}
                yield {"id": number, **_panel(panel), "gridPos": place}
            y += _HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    format_ = "heatmap" if panel.kind == "heatmap" else "time_series"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"calculate": False} if panel.kind == "heatmap" else {},
        "targets": list(_targets(panel.queries, format_)),
    }


def _targets(queries: dict[str, str], format_: str) -> Iterator[dict[str, Any]]:
    for letter, (legend, query) in zip("ABCDEFGH", queries.items(), strict=False):
        expression = query.replace("$of", 'instance=~"$instance"').replace("$window", "$__rate_interval")
        yield {
            "refId": letter,
            "datasource": _DATASOURCE,
            "expr": expression,
            "legendFormat": legend,
            "format": format_,
        }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _instance_variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Instance",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": "label_values(vigor_build_info, instance)", "refId": "instance"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


DASHBOARDS = {
    "operations": dashboard("vigor-operations", "VIGOR: operations", OPERATIONS),
    "reward": dashboard("vigor-reward", "VIGOR: reward", REWARD),
}


def text(name: str) -> str:
    """Return the file of a dashboard."""
    return json.dumps(DASHBOARDS[name], indent=2) + "\n"


def main() -> None:
    """Write the dashboards."""
    for name in DASHBOARDS:
        (DIRECTORY / f"{name}.json").write_text(text(name))


if __name__ == "__main__":
    main()
