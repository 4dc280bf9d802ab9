"""The dashboards as Grafana would load them, without Grafana."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, get_args

import pytest

from k8s.components.monitoring.dashboards import DASHBOARDS, text
from tests.monitoring.observed import MONITORING, panels, series_names
from vigor_client.schemas.weights import WeightState

PANELS = panels()
UNITS = {"reqps", "s", "short", "none", "percentunit", "bytes", "Bps"}


@pytest.fixture(params=sorted(DASHBOARDS))
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((MONITORING / f"dashboards/{request.param}.json").read_text())


def test_the_files_are_what_the_program_writes() -> None:
    files = {path.stem: path.read_text() for path in (MONITORING / "dashboards").iterdir()}
    assert files == {name: text(name) for name in DASHBOARDS}


def test_dashboards_have_different_uids_that_grafana_takes() -> None:
    uids = [content["uid"] for content in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"[a-z0-9-]{1,40}", uid) for uid in uids)


def test_every_panel_has_an_id_of_its_own(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert ids == list(range(1, len(ids) + 1))


def test_no_panel_lies_over_another_and_none_leaves_the_page(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 and min(place["w"], place["h"]) > 0 for place in places)
    assert [(a, b) for a, b in combinations(places, 2) if _overlap(a, b)] == []


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return all(a[at] < b[at] + b[size] and b[at] < a[at] + a[size] for at, size in (("x", "w"), ("y", "h")))


def test_the_data_source_and_the_instances_are_variables(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert list(variables) == ["datasource", "namespace", "model", "instance"]
    for name in ("namespace", "model", "instance"):
        assert set(re.findall(r"vigor_\w+", variables[name]["query"]["query"])) == {"vigor_build_info"}
        assert variables[name]["query"]["query"].endswith(f", {name})")
    assert '{namespace=~"$namespace", model=~"$model"}' in variables["instance"]["query"]["query"]
    assert "allValue" not in variables["instance"]  # all of those that are chosen, not all that there are


def test_publications_are_marked_on_all_panels_of_one_crosshair(dashboard: dict[str, Any]) -> None:
    assert dashboard["graphTooltip"] == 1
    (annotation,) = dashboard["annotations"]["list"]
    assert set(re.findall(r"vigor_\w+", annotation["expr"])) <= series_names()
    assert 'instance=~"$instance"' in annotation["expr"]


def test_every_state_of_weights_has_a_name_and_a_colour() -> None:
    defaults = PANELS["operations: Weight state"]["fieldConfig"]["defaults"]
    (mapping,) = defaults["mappings"]
    assert [mapping["options"][str(value)]["text"] for value in range(3)] == list(get_args(WeightState))
    assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, 1, 2]


def test_runs_are_not_averaged_together() -> None:
    for name, panel in PANELS.items():
        if name.startswith("reward: ") and panel["type"] == "timeseries" and "wait" not in panel["targets"][0]["expr"]:
            assert all("{{instance}}" in target["legendFormat"] for target in panel["targets"]), name


@pytest.mark.parametrize("panel", PANELS.values(), ids=list(PANELS))
def test_a_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS or re.fullmatch(r"suffix: \w+(/s)?", unit)
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
    assert len({target["legendFormat"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("panel", PANELS.values(), ids=list(PANELS))
def test_every_series_of_a_panel_exists_and_is_of_the_chosen_instances(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        selected = re.findall(r"(vigor_\w+)\{([^}]*)\}", target["expr"])
        assert {name for name, _ in selected} == set(re.findall(r"\bvigor_\w+", target["expr"])) <= series_names()
        assert all('instance=~"$instance"' in labels for _, labels in selected)
        assert set(re.findall(r"\$\w+", target["expr"])) <= {"$instance", "$__rate_interval"}


def test_every_metric_is_shown_by_a_panel() -> None:
    shown = {name for panel in PANELS.values() for target in panel["targets"] for name in _asked(target["expr"])}
    families = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in series_names()}
    of_the_process = {
        "vigor_process_" + name for name in ("virtual_memory_bytes", "start_time_seconds", "open_fds", "max_fds")
    }
    assert families - shown == of_the_process | {"vigor_build_info"}


def _asked(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in re.findall(r"\bvigor_\w+", expression)}
