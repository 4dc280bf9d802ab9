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
    panels,
    series_names,
    without_thresholds,
    write_rules,
)

ALERTS = alerts()
UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"
RUNBOOKS = ROOT / "docs/operations/runbooks.md"
RUNBOOK_URL = "https://example.com/vigor/runbooks.md"
"""The placeholder that an operator replaces: k8s/overlays/example/names.yaml, or the command on the page."""
WORDS_IN_ITALICS = {OBSERVING: {"Dashboards, New, Import", "Ties", "Duplicates"}, RUNBOOKS: {"Italics"}}
NUMBERS = {9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}


@pytest.mark.parametrize("alert", ALERTS.values(), ids=list(ALERTS))
def test_an_alert_has_a_severity_a_summary_and_a_runbook_that_exists(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{alert['alert'].lower()}"
    assert alert["alert"] in re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)


def test_every_runbook_belongs_to_an_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE) == list(ALERTS)


@pytest.mark.parametrize("page", [OBSERVING, RUNBOOKS], ids=lambda page: page.name)
def test_every_panel_that_a_page_names_is_on_a_dashboard(page: Path) -> None:
    titles = {panel.partition(": ")[2] for panel in panels()}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", page.read_text()))
    assert named - titles == WORDS_IN_ITALICS[page]
    assert named & titles


def test_the_page_counts_the_alerts() -> None:
    assert f"and {NUMBERS[len(ALERTS)]} alerts with [runbooks]" in OBSERVING.read_text()


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


@needs_prometheus
def test_the_command_on_the_page_writes_rules_with_the_runbooks_of_the_operator(tmp_path: Path) -> None:
    (command,) = re.findall(r"^```bash\n(RUNBOOKS=.*?)^```$", OBSERVING.read_text(), re.MULTILINE | re.DOTALL)
    address = command.partition("\n")[0].removeprefix("RUNBOOKS=")
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, timeout=60, check=True)
    rules = yaml.safe_load((tmp_path / "vigor-rules.yml").read_text())["groups"][0]["rules"]
    assert [rule["annotations"]["runbook_url"] for rule in rules] == [f"{address}#{name.lower()}" for name in ALERTS]
    checked = _promtool("check", "rules", "--lint-fatal", str(tmp_path / "vigor-rules.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
