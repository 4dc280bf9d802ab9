"""What is done with the inspector's page."""

from __future__ import annotations

from playwright.sync_api import Page


def score_and_explain(page: Page, completion: int) -> None:
    """Score what the form holds and have one completion explained."""
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_role("button", name=f"Explain the norm of completion {completion}").click()
    page.get_by_role("heading", name=f"Where the norm of completion {completion} comes from").wait_for()
