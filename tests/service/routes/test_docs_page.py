import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256

import pytest

from tests.support.live_service import LiveService, live_service
from vigor_service.routes.docs_page import docs_page


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging"), score_key="scorer") as running:
        yield running


def test_every_call_and_shape_of_the_description_is_on_the_page(service: LiveService) -> None:
    description, page = service.http.get("/openapi.json").json(), service.http.get("/docs").text
    calls = [f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods]
    assert re.findall(r"<h3>(.*?)</h3>", page) == calls
    shapes = list(description["components"]["schemas"])
    assert re.findall(r'<details id="(.*?)">', page) == shapes
    assert set(re.findall(r'href="#(.*?)"', page)) <= set(shapes)


def test_the_page_runs_nothing_loads_nothing_and_stands_in_no_frame(service: LiveService) -> None:
    answer = service.http.get("/docs")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    (style,) = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert re.findall(r"<script|<img|<link|<iframe|https?:|\son\w+=", answer.text) == []


def test_what_the_description_says_is_text_and_no_markup() -> None:
    odd = "<script>alert(1)</script>"
    schema = {"type": "object", "description": odd, "properties": {odd: {"enum": [odd], "description": odd}}}
    call = {"summary": odd, "responses": {"200": {"description": odd, "content": {odd: {"schema": {"type": odd}}}}}}
    page = docs_page(
        {
            "info": {"title": odd, "version": "1", "description": odd},
            "paths": {f"/{odd}": {"get": call}},
            "components": {"schemas": {odd: schema}},
        }
    )
    assert "<script" not in page
