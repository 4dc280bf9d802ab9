"""The pictures of docs/trainer.md: ``python -m tests.trainer.reports.screenshots docs/images [RUNS]``.

They are of the demo's two runs, which takes three minutes on two cores, or of those that ``RUNS`` has.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from tests.support.browser import chromium, watched_page
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import read_runs

REWARDS = ("vigor", "random")
DEMO_SECONDS = 1800.0
_NUM_COLOURS = 256  # keeps a picture below 200 kB
_LIST = "#list"
_PICTURES: dict[str, tuple[dict[str, Any], str | None]] = {
    "report-light": ({}, None),
    "report-dark": ({"color_scheme": "dark"}, None),
    "report-completions": ({}, _LIST),
}
"""Name of each picture, the options of its page, and the part of it that is shown: None for the top of the page."""


def train(directory: Path) -> None:
    """Train a run for each reward."""
    command = [sys.executable, "-m", "examples.demo", "--directory", str(directory)]
    subprocess.run(command, timeout=DEMO_SECONDS, check=True)


def take(pictures: Path, runs: Path) -> None:
    """Take every picture of the page of these runs."""
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        page = Path(scratch) / "report.html"
        write_report(page, read_runs([runs / reward for reward in REWARDS]))
        for name, (options, shown) in _PICTURES.items():
            picture = _taken(browser, page.as_uri(), shown, options)
            picture.quantize(_NUM_COLOURS).save(pictures / f"{name}.png", optimize=True)


def _taken(browser: Browser, url: str, shown: str | None, options: dict[str, Any]) -> Image.Image:
    with watched_page(browser, url, viewport={"width": 1200, "height": 1450}, **options) as watched:
        watched.page.wait_for_selector("html[data-drawn]")
        watched.page.locator("#kind").select_option("disagree")
        picture = watched.page.locator(shown).screenshot() if shown else watched.page.screenshot()
        return Image.open(io.BytesIO(picture))


def main(pictures: Path, runs: Path | None = None) -> None:
    """Take every picture, of these runs or of new ones."""
    if runs is not None:
        return take(pictures, runs)
    with tempfile.TemporaryDirectory() as scratch:
        train(Path(scratch))
        return take(pictures, Path(scratch))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
