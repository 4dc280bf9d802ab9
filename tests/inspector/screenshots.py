"""The pictures of docs/inspector.md: ``python -m tests.inspector.screenshots docs/images``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect

from tests.inspector.browser import score_and_explain
from tests.support.browser import chromium, watched_page
from tests.support.service_process import service_process

_NUM_COLOURS = 256  # keeps a picture below 200 kB
_PICTURES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
}


def take(directory: Path) -> None:
    """Take every picture, of the embedded model."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        service_process(Path(scratch), num_threads=2) as service,
        chromium() as browser,
    ):
        for name, options in _PICTURES.items():
            picture = _taken(browser, str(service.http.base_url), options)
            picture.quantize(_NUM_COLOURS).save(directory / f"inspector-{name}.png", optimize=True)


def _taken(browser: Browser, url: str, options: dict[str, Any]) -> Image.Image:
    with watched_page(browser, url, reduced_motion="reduce", **options) as watched:
        score_and_explain(watched.page, 3)
        watched.page.get_by_role("button", name="“8”, token").hover()
        expect(watched.page.locator("#queue")).to_have_text("0 requests")
        return Image.open(io.BytesIO(watched.page.screenshot(full_page=True)))


if __name__ == "__main__":
    take(Path(sys.argv[1]))
