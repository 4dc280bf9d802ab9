"""Alerts: each fires when it should and not before, leads to a runbook, and asks for what exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import yaml

from tests.monitoring.observed import (
    OBSERVING,
    ROOT,
    alerts,
    needs_prometheus,
    series_names,
    without_thresholds,
    write_rules,
)

ALERTS = alerts()
UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
def test_an_alert_has_a_severity_a_summary_and_a_runbook_that_exists(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings


def test_every_runbook_belongs_to_an_alert() -> None:
    runbooks = (ROOT / "docs/operations/runbooks.md").read_text()
    assert re.findall(r"^## (\w+)$", runbooks, re.MULTILINE) == list(ALERTS)


def test_the_page_lists_the_alerts_with_their_severities() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks\.md#\w+\) \| (\w+) \|", OBSERVING.read_text(), re.MULTILINE)
    assert rows == [(name, alert["labels"]["severity"]) for name, alert in ALERTS.items()]


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
def test_every_series_of_an_alert_exists(alert: dict[str, Any]) -> None:
    asked = set(re.findall(r"\bvigor_\w+", alert["expr"]))
    assert asked or "up{" in alert["expr"]
    assert asked <= series_names()


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
def test_an_alert_compares_with_a_number_that_can_be_left_out(alert: dict[str, Any]) -> None:
    values = without_thresholds(alert["expr"])
    assert values != alert["expr"]
    assert not re.search(r"[<>]|[!=]=", values)


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    seen = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in seen if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in seen if not case.get("exp_alerts")} == set(ALERTS)


@needs_prometheus
def test_promtool_has_nothing_to_say_about_the_rules(tmp_path: Path) -> None:
    checked = _promtool("check", "rules", "--lint-fatal", str(write_rules(tmp_path)))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_alerts_fire_and_do_not_fire_as_their_unit_tests_say(tmp_path: Path) -> None:
    write_rules(tmp_path)
    copy(UNIT_TESTS, tmp_path)
    tested = _promtool("test", "rules", str(tmp_path / UNIT_TESTS.name))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
