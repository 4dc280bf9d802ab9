"""`make help` lists the commands, and their descriptions are the Makefile's own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = re.findall(r"[\w-]+", re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[0])


def test_help_has_one_line_for_each_command_and_no_other() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    lines = [line.split(maxsplit=1) for line in shown.splitlines() if not line.startswith("make")]
    assert sorted(target for target, _ in lines) == sorted(PHONY)
    assert all(len(help_text) > 8 for _, help_text in lines)


def test_every_command_is_phony() -> None:
    assert sorted(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)) == sorted(PHONY)


def test_contributing_names_only_commands_that_are_there() -> None:
    named = re.findall(r"make ([a-z][\w-]*)", (ROOT / "CONTRIBUTING.md").read_text())
    assert set(named) <= set(PHONY)
    assert {"help", "check", "test-unit", "test", "coverage", "docs"} <= set(named)
