import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_service import LiveService, live_service
from vigor_service.routes import inspector

DIRECTORY = Path(inspector.__file__).parents[1] / "inspector"
FILES = sorted(path.name for path in DIRECTORY.iterdir())
SOURCES = "\n".join((DIRECTORY / name).read_text() for name in FILES)
PAGE = (DIRECTORY / "index.html").read_text()
METHOD = "https://arxiv.org/abs/2605.09920"
"""A link to follow; nothing is loaded from there."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """With keys, of which the page itself needs none."""
    with live_service(tmp_path_factory.mktemp("staging"), score_key="scorer") as running:
        yield running


def test_the_page_is_there_without_a_key_and_its_calls_are_not(service: LiveService) -> None:
    answer = service.http.get("/")
    assert (answer.status_code, answer.text) == (200, PAGE)
    assert service.http.get("/v1/weights").status_code == 401


@pytest.mark.parametrize("path", ["/", *(f"/inspector/{name}" for name in FILES)])
def test_every_file_says_what_it_is_and_what_it_may_do(service: LiveService, path: str) -> None:
    answer = service.http.get(path)
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].partition(";")[0] == kinds[Path(path).suffix or ".html"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"


def test_a_browser_keeps_a_file_for_as_long_as_it_is_the_same(service: LiveService) -> None:
    first = service.http.get("/inspector/inspector.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = service.http.get("/inspector/inspector.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = service.http.get("/inspector/style.css", headers={"If-None-Match": first.headers["ETag"]})
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "../app.py", "style.css/x"])
def test_nothing_else_is_served(service: LiveService, name: str) -> None:
    refused = service.http.get(f"/inspector/{name}")
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


def test_everything_that_the_page_loads_is_a_file_of_it() -> None:
    loaded = re.findall(r'<(?:link|script|img)[^>]*(?:href|src)="([^"]+)"', PAGE)
    imported = re.findall(r'from "\./([^"]+)"', SOURCES)
    assert {name.removeprefix("inspector/") for name in loaded} | set(imported) == set(FILES) - {"index.html"}


def test_the_page_names_nobody_else_and_writes_no_markup_out_of_data() -> None:
    assert set(re.findall(r"https?://[^\s\"']+", SOURCES)) == {"http://www.w3.org/2000/svg", METHOD}
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", SOURCES) == []
    assert re.findall(r"<script>|\son\w+=\"|style=\"", PAGE) == []


def test_every_element_that_a_script_asks_for_is_on_the_page() -> None:
    asked = set(re.findall(r'byId\("([^"]+)"\)', SOURCES))
    assert asked
    assert asked <= set(re.findall(r'id="([^"]+)"', PAGE))
