"""The page of an audit, in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.browser import chromium, watched_page
from tests.trainer.audit.planted import WEIGHTS, PlantedService, group
from vigor_trainer.audit.metrics import audit_metrics
from vigor_trainer.audit.page import write_page
from vigor_trainer.audit.scoring import audited
from vigor_trainer.audit.verdict import verdict_of


@pytest.mark.slow
def test_the_page_draws_its_plots_and_asks_for_nothing(tmp_path: Path) -> None:
    completions = [each for number in range(12) for each in group(number, [10, 20, 11, 21], [True, False] * 2)]
    scored = audited(completions, PlantedService(), WEIGHTS, seed=0)
    metrics, path = audit_metrics(scored), tmp_path / "audit.html"
    write_page(path, metrics, verdict_of(metrics), scored, title="An audit")
    with chromium() as browser, watched_page(browser, path.as_uri()) as watched:
        page = watched.page
        page.get_by_role("heading", name="AUC of each reward").wait_for()
        page.locator(".scatterlayer .point").first.wait_for()
        assert page.locator(".scatterlayer .point").count() == 2 * 11 + 2 * 48
        assert "aligned with correctness here, above chance" in page.locator(".verdict").inner_text()
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0  # nothing stands out of the window
    assert watched.urls == [path.as_uri()]
