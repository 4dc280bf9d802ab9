"""A release is a tag that equals the version, with a dated section of the changelog."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vigor_client import __version__

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".github/scripts/release_notes.py"
MODULE = runpy.run_path(str(SCRIPT))
release_notes: Callable[..., str] = MODULE["release_notes"]
ReleaseError: type[Exception] = MODULE["ReleaseError"]
CHANGELOG = """# Changelog

## [Unreleased]

- Next.

## [0.2.0] - 2026-02-03

### Added

- [A page](docs/page.md#part), [another](https://example.org).

## [0.1.0] - 2026-01-02

- First.

## [0.0.9] - 2026-01-01
"""


def test_the_version_of_the_packages_has_a_dated_section() -> None:
    command = [sys.executable, SCRIPT, f"v{__version__}", "--repository", "https://example.org/r"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "### Added" in done.stdout
    assert "\n## " not in done.stdout


def test_the_notes_are_the_section_with_links_to_the_files_at_the_tag() -> None:
    assert release_notes("v0.2.0", "0.2.0", CHANGELOG, "https://example.org/r") == (
        "### Added\n\n- [A page](https://example.org/r/blob/v0.2.0/docs/page.md#part), [another](https://example.org).\n"
    )
    assert release_notes("v0.1.0", "0.1.0", CHANGELOG, "") == "- First.\n"


@pytest.mark.parametrize(
    ("tag", "version", "said"),
    [
        ("v0.2.0", "0.1.0", "the tag is v0.2.0, but the version of the packages is 0.1.0"),
        ("0.1.0", "0.1.0", "tag v0.1.0"),
        ("v0.3.0", "0.3.0", "needs a section"),
        ("v0.0.9", "0.0.9", "needs a section"),
        ("v0x1.0", "0x1.0", "needs a section"),
    ],
)
def test_what_is_no_release_is_refused_with_the_reason(tag: str, version: str, said: str) -> None:
    with pytest.raises(ReleaseError, match=said):
        release_notes(tag, version, CHANGELOG, "")


def test_the_command_ends_with_1_for_another_tag() -> None:
    command = [sys.executable, SCRIPT, "v99.0.0", "--repository", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the tag is v99.0.0")
