"""Each hook of pre-commit passes a sound commit and stops one with its fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".pre-commit-config.yaml"
HOOKS: list[str] = [hook["id"] for repo in yaml.safe_load(CONFIG.read_text())["repos"] for hook in repo["hooks"]]
SOUND = {"client/module.py": 'number: int = 1\n"""A number."""\n', "k8s/file.yaml": "key: value\n"}
FAULTS = {
    "ruff-format": ("client/module.py", "number   = 1\n"),
    "ruff-check": ("client/module.py", "import os\n"),
    "pyright": ("client/module.py", 'number: int = "one"\n'),
    "yamllint": ("k8s/file.yaml", "key: 1\nkey: 2\n"),
}
LIMIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two sound files, with the project's hooks, settings and environment."""
    directory = tmp_path_factory.mktemp("repository")
    for name in (CONFIG.name, "pyproject.toml", ".yamllint.yaml"):
        shutil.copy(ROOT / name, directory)
    (directory / ".venv").symlink_to(sys.prefix)
    (directory / ".gitignore").write_text("/.venv\n")
    for name, text in SOUND.items():
        (directory / name).parent.mkdir()
        (directory / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=directory, check=True)
    return directory


def commit_hooks(repository: Path, *hooks: str) -> subprocess.CompletedProcess[str]:
    """Run these hooks, or all of them, on what would be committed."""
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", *hooks],
        cwd=repository,
        env={**environment, "PRE_COMMIT_HOME": str(repository.parent)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_a_sound_commit_passes_every_hook(repository: Path) -> None:
    done = commit_hooks(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == len(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_planted_fault_is_stopped(hook: str, repository: Path) -> None:
    name, text = FAULTS[hook]
    (repository / name).write_text(text)
    done = commit_hooks(repository, hook)
    (repository / name).write_text(SOUND[name])
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("Failed") == 1
