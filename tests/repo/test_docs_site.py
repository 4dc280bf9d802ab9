"""The site has every page of docs/, and no link of it leads to a file that the site lacks."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
with_repository_links: Callable[[str, str, str | None], str] = runpy.run_path(str(DOCS / "_hooks/repository_links.py"))[
    "with_repository_links"
]
ADDRESS = "https://example.org/r"


def test_the_navigation_and_the_first_page_name_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {page for page in PAGES if not page.startswith("decisions/")}
    assert set(re.findall(r"[\w/-]+\.md", navigation)) == pages
    assert set(re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "README.md").read_text())) - {"decisions/README.md"} == (
        pages - {"README.md"}
    )


@pytest.mark.parametrize("page", PAGES)
def test_no_link_leads_out_of_the_docs(page: str) -> None:
    for address in (None, ADDRESS):
        prose = re.sub(
            r"^```.*?^```$", "", with_repository_links((DOCS / page).read_text(), page, address), flags=re.M | re.S
        )
        relative = [target for target in re.findall(r"\]\(([^)\s#]+)", prose) if not re.match("[a-z]+:", target)]
        assert all((DOCS / page).parent.joinpath(target).resolve().is_relative_to(DOCS) for target in relative)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("[the `engine`](../../README.md#the-tree)", f"[the `engine`]({ADDRESS}/blob/main/README.md#the-tree)"),
        ("[k8s](../../k8s)", f"[k8s]({ADDRESS}/tree/main/k8s)"),
        ("[a page](../client.md#errors)", "[a page](../client.md#errors)"),
        ("[elsewhere](https://example.org)", "[elsewhere](https://example.org)"),
        ("`[k8s](../../k8s)`", "`[k8s](../../k8s)`"),
        ("```\n[k8s](../../k8s)\n```", "```\n[k8s](../../k8s)\n```"),
    ],
)
def test_a_link_to_a_file_of_the_repository_leads_there(text: str, changed: str) -> None:
    assert with_repository_links(text, "operations/page.md", ADDRESS) == changed


def test_without_the_address_of_the_repository_the_text_stays() -> None:
    assert with_repository_links("See [the `engine`](../README.md).", "page.md", None) == "See the `engine`."


def test_a_link_to_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/page\.md links to service/gone\.py"):
        with_repository_links("[gone](../service/gone.py)", "page.md", ADDRESS)
