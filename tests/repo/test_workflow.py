"""Continuous integration calls what a developer calls, with pinned actions, limits of time and few permissions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS: dict[str, dict[Any, Any]] = {
    file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
SHARED_STEPS: list[dict[str, Any]] = [
    step
    for file in (ROOT / ".github/actions").glob("*/action.yml")
    for step in yaml.safe_load(file.read_text())["runs"]["steps"]
]
NAMED_JOBS = {(workflow, name): job for workflow, content in WORKFLOWS.items() for name, job in content["jobs"].items()}
JOBS = [job for job in NAMED_JOBS.values() if "uses" not in job]  # one that calls a workflow has that one's limits
STEPS = [*SHARED_STEPS, *(step for job in JOBS for step in job["steps"])]
PERMISSIONS = {
    ("release", "pypi"): {"id-token": "write"},
    ("release", "image"): {"contents": "read", "packages": "write"},
    ("release", "github"): {"contents": "write"},
}
"""All that a job may do beyond reading the repository."""


def called(steps: list[dict[str, Any]]) -> set[str]:
    """The targets of the Makefile that steps call by name."""
    return {target for step in steps for target in re.findall(r"^make ([\w-]+)", step.get("run", ""), re.MULTILINE)}


def test_every_make_target_that_it_calls_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    matrix = {command for job in JOBS for command in job.get("strategy", {}).get("matrix", {}).get("command", [])}
    assert {"tools", "setup", "check", "policies", "test", "monitoring", "inspector"} <= called(STEPS)
    assert {"test-unit", "coverage", "docs", "dist"} <= called(STEPS)
    assert called(STEPS) | matrix <= set(targets)


def test_what_takes_long_runs_every_night() -> None:
    jobs = WORKFLOWS["nightly"]["jobs"]
    assert {"test-slow", "kills", "sweep", "fuzz", "contract"} == set(jobs["long"]["strategy"]["matrix"]["command"])
    assert "make image-steps" in [step.get("run") for step in jobs["image-steps"]["steps"]]
    assert "schedule" in WORKFLOWS["nightly"][True]  # YAML reads the key `on` as true


def test_the_tests_run_on_every_python_that_the_package_names() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert classifiers
    assert set(classifiers) <= set(WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"])


def test_every_action_is_pinned_to_a_version() -> None:
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert actions
    pinned = r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+|\./\.github/actions/[\w-]+"
    assert [action for action in actions if not re.fullmatch(pinned, action)] == []


def test_every_job_has_a_limit_of_time() -> None:
    assert all(job["timeout-minutes"] <= 60 for job in JOBS)


def test_a_job_may_read_the_repository_and_no_more_unless_it_is_listed() -> None:
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())
    assert {key: job["permissions"] for key, job in NAMED_JOBS.items() if "permissions" in job} == PERMISSIONS


def test_no_checkout_leaves_its_token_behind() -> None:
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_a_release_passes_the_tests_and_its_images_say_what_they_are_made_of() -> None:
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in WORKFLOWS["ci"][True]
    assert all("ci" in jobs[name]["needs"] for name in ("pypi", "image"))
    (build,) = [step for step in jobs["image"]["steps"] if step.get("uses", "").startswith("docker/build-push-action")]
    assert build["with"]["sbom"] is build["with"]["provenance"] is True


def test_a_release_builds_the_service_with_and_without_ray_under_the_tag_of_the_overlay() -> None:
    (tag,) = re.findall(r"newTag: [\d.]+(-\w+)", (ROOT / "k8s" / "overlays" / "ray" / "kustomization.yaml").read_text())
    images = WORKFLOWS["release"]["jobs"]["image"]["strategy"]["matrix"]["include"]
    with_ray = {
        image["suffix"]: "ray" in image["extras"].split(",") for image in images if image["name"] == "vigor-service"
    }
    assert with_ray == {"": False, tag: True}
