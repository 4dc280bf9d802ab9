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
        "graphTooltip": 1,  # one crosshair for all panels
        "annotations": {"list": [_publications()]},
        "templating": {"list": [_datasource_variable(), *_selections()]},
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
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": {"calculate": False} if panel.kind == "heatmap" else {},
        "targets": list(_targets(panel.queries, format_)),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.states:
        states = {str(value): {"text": name, "color": colour} for value, (name, colour) in enumerate(panel.states)}
        defaults["mappings"] = [{"type": "value", "options": states}]
        defaults["color"] = {"mode": "thresholds"}
        steps = [{"color": colour, "value": value or None} for value, (_, colour) in enumerate(panel.states)]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.warn_above is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.warn_above}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    return defaults


def _targets(queries: dict[str, str], format_: str) -> Iterator[dict[str, Any]]:
    for letter, (legend, query) in zip("ABCDEFGH", queries.items(), strict=False):
        yield {
            "refId": letter,
            "datasource": _DATASOURCE,
            "expr": _of_the_chosen(query),
            "legendFormat": legend,
            "format": format_,
        }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _selections() -> list[dict[str, Any]]:
    """Return the variables that filter instances: namespace, then model, then the pods that match both."""
    info = 'vigor_build_info{namespace=~"$namespace"}', 'vigor_build_info{namespace=~"$namespace", model=~"$model"}'
    return [
        _selection(
            "namespace", "Namespace", "vigor_build_info", "namespace", all_value=".*"
        ),  # outside Kubernetes the label is missing
        _selection("model", "Model", info[0], "model", all_value=".*"),
        _selection("instance", "Pod", info[1], "instance"),
    ]


def _selection(name: str, title: str, series: str, label: str, *, all_value: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "label": title,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({series}, {label})", "refId": name},
        "refresh": 2,
        "includeAll": True,
        **({} if all_value is None else {"allValue": all_value}),
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _publications() -> dict[str, Any]:
    return {
        "name": "New weights",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": _of_the_chosen("changes(vigor_weight_published_timestamp_seconds{$of}[$window]) > 0"),
        "titleFormat": "new weights",
        "textFormat": "{{instance}}",
    }


def _of_the_chosen(query: str) -> str:
    return query.replace("$of", 'instance=~"$instance"').replace("$window", "$__rate_interval")


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
