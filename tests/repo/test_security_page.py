"""SECURITY.md names a test for every promise, and each is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_each_promise_names_tests_that_are_there() -> None:
    promises = PAGE.partition("## What is promised")[2].partition("`make fuzz`")[0]
    rows = [line.split("|") for line in promises.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 30
    for _, threat, _, test, _ in rows:
        (path,) = re.findall(r"`(tests/[a-z_/]+\.py)`", test)
        assert (ROOT / path).is_file(), threat
        assert "def test_" in (ROOT / path).read_text(), threat


def test_its_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / target).exists(), target


def test_its_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
