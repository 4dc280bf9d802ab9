"""Print the changelog's section of the version that a tag names: `release_notes.py v0.1.0 --repository URL`.

Ends with 1 if the tag is not the version of the packages, or if the changelog has no dated section for it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION_FILE = ROOT / "client/vigor_client/_version.py"
CHANGELOG = ROOT / "CHANGELOG.md"


class ReleaseError(Exception):
    """Why a tag is no release."""


def section(changelog: str, version: str) -> str:
    """Return the text below the dated heading of a version, without the heading.

    Raises:
        ReleaseError: if there is no such heading, or nothing below it.
    """
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    found = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ReleaseError(
            f"CHANGELOG.md needs a section '## [{version}] - YYYY-MM-DD' with the changes of the version"
        )
    return found[1].strip() + "\n"


def release_notes(tag: str, version: str, changelog: str, repository: str) -> str:
    """Return the section of the version, its relative links leading to the files at the tag.

    Raises:
        ReleaseError: if the tag is not ``v`` and the version, or the changelog lacks the section.
    """
    if tag != f"v{version}":
        raise ReleaseError(
            f"the tag is {tag}, but the version of the packages is {version}: tag v{version}, or change _version.py"
        )
    return re.sub(r"\]\((?![a-z]+:|#)", f"]({repository}/blob/{tag}/", section(changelog, version))


def main() -> int:
    """Print the notes; return 1 where there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    parser.add_argument("--repository", required=True, help="address that relative links are completed with")
    arguments = parser.parse_args()
    version = re.search(r'__version__ = "(.+)"', VERSION_FILE.read_text())
    try:
        notes = release_notes(arguments.tag, version[1] if version else "", CHANGELOG.read_text(), arguments.repository)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(notes, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
