"""Continuous integration calls what a developer calls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS: list[dict[str, Any]] = [
    yaml.safe_load(file.read_text()) for file in sorted((ROOT / ".github/workflows").glob("*.yml"))
]
JOBS: list[dict[str, Any]] = [job for workflow in WORKFLOWS for job in workflow["jobs"].values()]
STEPS = [step for job in JOBS for step in job["steps"]]


def test_every_make_target_that_it_calls_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = {target for step in STEPS for target in re.findall(r"^make (\S+)$", step.get("run", ""), re.MULTILINE)}
    assert {"tools", "setup", "check", "policies", "test", "monitoring", "inspector", "sweep"} <= called
    assert called <= set(targets)


def test_every_action_is_pinned_to_a_version() -> None:
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", action)] == []


def test_every_job_has_a_limit_of_time() -> None:
    assert all(job["timeout-minutes"] <= 60 for job in JOBS)
