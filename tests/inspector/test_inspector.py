"""The inspector in Chromium, against a running service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from tests.inspector.browser import score_and_explain
from tests.support.browser import CHROMIUM, Watched, chromium, watched_page
from tests.support.live_service import live_service
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model
from vigor_client import VigorClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make tools` installs it"),
]
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
ANSWERS = ["3 + 4 = 7.", "The answer is 7.", "The answer is 8."]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service with a tiny model."""
    directory = tmp_path_factory.mktemp("service")
    checkpoint = save_tiny_checkpoint(directory / "model", "qwen3", max_position_embeddings=1024)
    with service_process(directory, "--model", str(checkpoint)) as service:
        yield str(service.http.base_url)


@pytest.fixture
def client(url: str) -> Iterator[VigorClient]:
    with VigorClient(url) as client:
        yield client


@pytest.fixture
def watched(browser: Browser, url: str) -> Iterator[Watched]:
    with watched_page(browser, url) as watched:
        yield watched


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


def cells(page: Page, label: str) -> list[str]:
    return page.locator(f"#rows td[data-label='{label}']").all_inner_texts()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "").split()[0])


def test_what_serves_is_shown(page: Page, client: VigorClient) -> None:
    expect(page.get_by_role("status").first).to_have_text("Ready")
    weights, model = client.weights(), client.model()
    expect(page.locator("#weights")).to_have_text(f"version {weights.weight_version}")
    expect(page.locator("#digest")).to_have_attribute("title", weights.weight_digest)
    expect(page.locator("#model")).to_have_text(model.model)
    expect(page.locator("#weights-more")).to_have_text(re.compile(r"published \d+ (second|minute)s? ago"))
    expect(page.locator("#queue")).to_have_text("0 requests")


def test_an_example_is_scored_and_the_table_has_the_scores_of_the_service(page: Page, client: VigorClient) -> None:
    page.get_by_role("button", name="Arithmetic").click()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(len(ANSWERS))
    completions = [{"text": text, "finish_reason": "stop"} for text in ANSWERS]
    scores = client.score([{"messages": QUESTION, "completions": completions}]).groups[0].completions
    assert page.locator("#rows .text").all_inner_texts() == ANSWERS
    norms = [score.grad_norm for score in scores]
    assert list(map(number, cells(page, "Norm"))) == pytest.approx(norms, rel=1e-3)
    assert list(map(number, cells(page, "Rank"))) == [score.rank for score in scores]
    assert list(map(number, cells(page, "Reward"))) == [score.reward for score in scores]
    assert list(map(number, cells(page, "Tokens"))) == [score.num_tokens for score in scores]
    assert cells(page, "Status") == ["ok"] * 3


def test_the_norm_of_a_completion_is_taken_apart(page: Page, client: VigorClient) -> None:
    page.get_by_role("button", name="Arithmetic").click()
    score_and_explain(page, 2)
    completion = {"text": ANSWERS[1], "finish_reason": "stop"}
    attribution = client.attribute({"messages": QUESTION, "completion": completion})
    tokens = page.locator(".token")
    expect(tokens).to_have_count(len(attribution.tokens))
    largest = max(range(len(attribution.tokens)), key=lambda position: attribution.tokens[position].share or 0)
    tokens.nth(largest).hover()
    share = f"{100 * (attribution.tokens[largest].share or 0):.2f}"
    expect(page.locator("#readout")).to_contain_text(f"token {largest + 1}: {share} %")
    heats = [float(token.evaluate("it => parseFloat(it.style.getPropertyValue('--heat'))")) for token in tokens.all()]
    assert max(heats) == heats[largest] > 0
    expect(page.locator("#token-sum")).to_have_text(re.compile(r"= 100\.0 %$"))
    expect(page.locator("#layer-sum")).to_have_text("Sum 100.0 %")
    assert page.locator(".layer-name").all_inner_texts() == [layer.name for layer in attribution.layers]
    page.locator("#layers summary").nth(1).click()
    expect(page.locator("details[open] .parameter-name").first).to_have_text("model.layers.0.self_attn.q_proj.weight")
    page.get_by_label("show numbers").check()
    expect(page.locator(".token-share").nth(largest)).to_be_visible()


def test_weights_that_are_published_meanwhile_show_by_themselves(page: Page, client: VigorClient) -> None:
    score_and_explain(page, 1)
    before = cells(page, "Norm")
    expect(page.locator("#outdated")).to_be_hidden()
    trained = tiny_model("qwen3", max_position_embeddings=1024)
    with torch.no_grad():
        trained.get_input_embeddings().get_parameter("weight").mul_(1.5)
    version = client.weights().weight_version + 7
    client.publish_weights(trained.state_dict(), weight_version=version)
    expect(page.locator("#weights")).to_have_text(f"version {version}")
    expect(page.locator("#outdated")).to_contain_text(f"the service now has version {version}")
    page.get_by_role("button", name="Score again").click()
    expect(page.locator("#scored-with")).to_contain_text(f"weights {version} ")
    expect(page.locator("#outdated")).to_be_hidden()
    assert cells(page, "Norm") != before


def test_the_header_shows_how_far_an_update_is(page: Page, url: str, client: VigorClient) -> None:
    version = client.weights().weight_version + 1
    announced = {"name": "model.safetensors", "num_bytes": 100_000, "checksum": "xxh3-128:" + "0" * 32}
    opened = httpx.post(f"{url}/v1/weights/updates", json={"weight_version": version, "files": [announced]})
    assert opened.status_code == 201, opened.text
    expect(page.locator("#weights-more")).to_have_text(f"version {version}: 0 B of 100 kB received")
    assert httpx.delete(f"{url}/v1/weights/updates/{opened.json()['update_id']}").status_code == 204
    expect(page.locator("#weights-more")).to_have_text(re.compile("^published "))


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    tab_to(page, "#examples button")
    expect(page.get_by_role("button", name="Arithmetic")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "#score")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Scores")).to_be_focused()
    tab_to(page, "#rows button")
    expect(page.get_by_role("button", name="Explain the norm of completion 1")).to_be_focused()
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Where the norm of completion 1 comes from")).to_be_focused()
    tab_to(page, ".token")
    expect(page.locator("#readout")).to_contain_text("token 1:")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text("token 3:")
    page.keyboard.press("End")
    expect(page.locator(".token").last).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.tagName") == "SUMMARY"  # one stop for all tokens
    page.keyboard.press("Enter")
    expect(page.locator("details[open]")).to_have_count(1)


def tab_to(page: Page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached")


def test_nothing_is_cut_off_on_a_narrow_screen(browser: Browser, url: str) -> None:
    with watched_page(browser, url, viewport={"width": 340, "height": 700}, has_touch=True) as watched:
        page = watched.page
        page.get_by_role("button", name="A function").click()
        score_and_explain(page, 2)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 340
        for part in (".token", "#rows td", ".layer-share", "button"):
            boxes = [box for item in page.locator(part).all() if (box := item.bounding_box()) is not None]
            assert boxes
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= 340 for box in boxes), part


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_either_scheme(browser: Browser, url: str, scheme: str) -> None:
    with watched_page(browser, url, color_scheme=scheme) as watched:
        score_and_explain(watched.page, 1)
        is_dark = luminance(colour(watched.page, "body", "backgroundColor")) < 0.1
        assert is_dark is (scheme == "dark")
        for selector, behind in [("body", "body"), (".more", "body"), ("#state", "header"), ("#score", "#score")]:
            text, paper = colour(watched.page, selector, "color"), colour(watched.page, behind, "backgroundColor")
            assert contrast(text, paper) >= 4.5, selector


def colour(page: Page, selector: str, name: str) -> list[float]:
    found = page.locator(selector).first.evaluate("(it, name) => getComputedStyle(it)[name]", name)
    return [float(value) / 255 for value in re.findall(r"[\d.]+", found)[:3]]


def luminance(rgb: list[float]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: list[float], second: list[float]) -> float:
    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


def test_data_are_text_whatever_they_contain(page: Page) -> None:
    markup = "<img src=x onerror=alert(1)>"
    page.get_by_label("Completion 1", exact=True).fill(markup)
    score_and_explain(page, 1)
    expect(page.locator("#rows .text").first).to_have_text(markup)
    assert page.locator("main img").count() == 0


def test_a_refusal_is_told_as_the_service_tells_it(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_label("How the prompt is read").select_option("prompt")
    page.get_by_role("button", name="Score", exact=True).click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("Invalid request")
    expect(problem).to_contain_text("groups › 0 › prompt")
    expect(problem).to_contain_text("invalid_request")
    page.get_by_role("button", name="Arithmetic").click()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(3)
    expect(problem).to_be_hidden()


def test_the_page_says_what_it_is_for_and_every_column_what_it_means(page: Page) -> None:
    expect(page.get_by_text("A smaller scaled norm is better")).to_be_visible()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(3)
    hints = [button.get_attribute("title") for button in page.locator("#columns button").all()]
    assert len(hints) == 10
    assert all(hints)
    expect(page.get_by_role("columnheader", name="Norm · √T")).to_contain_text("smaller is better")


def test_characters_of_several_tokens_are_shown_whole_and_blanks_by_a_sign(page: Page) -> None:
    page.get_by_label("Completion 1", exact=True).fill("漢字 👍")
    score_and_explain(page, 1)
    shown = page.locator(".part").last.locator(".token-text").all_inner_texts()
    assert shown[:4] == ["漢", "字", "␣", "👍"]
    page.locator(".part").last.locator(".token").first.hover()
    expect(page.locator("#readout")).to_contain_text(re.compile(r"“漢”, tokens \d+ to \d+: "))
    expect(page.locator("#token-sum")).to_have_text(re.compile(r"= 100\.0 %$"))


def test_the_best_row_is_marked_and_rows_are_sorted_by_any_column(page: Page) -> None:
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(3)
    (best,) = page.locator("#rows tr.best").all()
    expect(best.locator("[data-label=Rank]")).to_have_text("1")
    expect(best.get_by_text("best", exact=True)).to_be_visible()
    for label in ("Norm", "Entropy", "Tokens"):
        heading = page.locator("#columns th").filter(has=page.get_by_role("button", name=label, exact=True))
        for order in ("ascending", "descending"):
            heading.get_by_role("button").click()
            expect(heading).to_have_attribute("aria-sort", order)
            values = list(map(number, cells(page, label)))
            assert values == sorted(values, reverse=order == "descending")
    page.locator("#rows tr").first.get_by_role("button").click()
    index = page.locator("#rows tr").first.get_attribute("data-index")
    page.get_by_role("heading", name=f"Where the norm of completion {int(index or -1) + 1} comes from").wait_for()
    expect(page.locator("#rows tr").first.get_by_role("button")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize(
    "text",
    [
        '["one", "two"]',
        '{"prompt": "Say it", "completions": ["one", {"text": "two", "finish_reason": "length"}]}\n{"prompt": 1}',
        '{"groups": [{"messages": [{"role": "user", "content": "Say it"}], "completions": ["one", "two"]}]}',
    ],
)
def test_json_fills_in_the_form(page: Page, text: str) -> None:
    page.get_by_text("Fill in from JSON").click()
    page.locator("#json").fill(text)
    page.get_by_role("button", name="Fill in", exact=True).click()
    expect(page.get_by_label("Completion 1", exact=True)).to_have_value("one")
    expect(page.get_by_label("Completion 2", exact=True)).to_have_value("two")
    if "prompt" in text or "messages" in text:
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("Say it")
    is_complete = page.get_by_label("Completion 2 is complete (append EOS)").is_checked()
    assert is_complete is ("length" not in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one, two", "This is not JSON"),
        ('{"prompt": "hi"}', "No completions found"),
        ('{"prompt": "hi", "completions": [[1, 2]]}', "A completion is a text"),
        ('{"messages": [{"role": "system", "content": "x"}], "completions": ["a"]}', "one user message"),
    ],
)
def test_json_that_the_form_cannot_hold_is_refused_and_nothing_is_filled_in(page: Page, text: str, said: str) -> None:
    page.get_by_text("Fill in from JSON").click()
    page.locator("#json").fill(text)
    page.get_by_role("button", name="Fill in", exact=True).click()
    expect(page.locator("#json-problem")).to_contain_text(said)
    expect(page.get_by_label("Completion 1", exact=True)).to_have_value(ANSWERS[0])


def test_the_request_is_shown_as_curl_python_and_json_that_work(page: Page, url: str) -> None:
    page.get_by_label("Completion 2", exact=True).fill('it\'s "8" \\ é')
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(3)
    norms = list(map(number, cells(page, "Norm")))
    page.get_by_text("This request as curl, Python or JSON").click()
    shown = {}
    for form in ("curl", "python", "json"):
        page.get_by_label("Form of the request").select_option(form)
        shown[form] = page.locator("#request").inner_text()
    program = shown["python"] + "\nprint(response.model_dump_json())"
    for command in (["bash", "-c", f"{shown['curl']} --silent --fail"], [sys.executable, "-c", program]):
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
        assert [score["grad_norm"] for score in answer["groups"][0]["completions"]] == pytest.approx(norms, rel=1e-3)
    assert httpx.post(f"{url}/v1/score", json=json.loads(shown["json"])).status_code == 200


def test_a_link_to_the_page_fills_in_what_was_scored(browser: Browser, url: str, page: Page) -> None:
    page.get_by_role("button", name="A function").click()
    page.get_by_label("Completion 2", exact=True).fill("linked <b>text</b>")
    page.get_by_label("Completion 2 is complete (append EOS)").uncheck()
    page.get_by_label("ranked by").select_option("entropy")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(3)
    with watched_page(browser, url) as opened:
        opened.page.goto(page.url)
        opened.page.reload()
        expect(opened.page.get_by_label("Completion 2", exact=True)).to_have_value("linked <b>text</b>")
        expect(opened.page.get_by_label("Completion 2 is complete (append EOS)")).not_to_be_checked()
        expect(opened.page.get_by_label("ranked by")).to_have_value("entropy")
        opened.page.goto(f"{url}/#%7Bnonsense")
        opened.page.reload()
        expect(opened.page.get_by_label("Completion 1", exact=True)).to_have_value(ANSWERS[0])


def test_a_wait_shows_its_seconds_and_can_be_ended(browser: Browser, tmp_path: Path) -> None:
    with live_service(tmp_path) as service, watched_page(browser, str(service.http.base_url)) as watched:
        service.scorer.gate.clear()
        page = watched.page
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator("#progress-text")).to_have_text("Scoring…")
        expect(page.locator("#elapsed")).to_have_text("1 s")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#progress")).to_be_hidden()
        service.scorer.gate.set()
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator("#rows tr")).to_have_count(3)


def test_fifty_completions_fit_into_the_form_and_the_table(page: Page) -> None:
    page.get_by_text("Fill in from JSON").click()
    page.locator("#json").fill(json.dumps([f"answer {number}" for number in range(50)]))
    page.get_by_role("button", name="Fill in", exact=True).click()
    form = page.locator("#completions").bounding_box()
    assert form is not None
    assert form["height"] < 700
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#rows tr")).to_have_count(50)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_borders_and_bars_stand_out(browser: Browser, url: str, scheme: str) -> None:
    with watched_page(browser, url, color_scheme=scheme) as watched:
        score_and_explain(watched.page, 1)
        for selector, name, behind in [
            ("#prompt", "borderTopColor", "body"),
            ("#add", "borderTopColor", "body"),
            ("#rows .bar-fill", "backgroundColor", "#rows .bar-track"),
            ("#layers .bar-fill", "backgroundColor", "#layers .bar-track"),
        ]:
            found, paper = colour(watched.page, selector, name), colour(watched.page, behind, "backgroundColor")
            assert contrast(found, paper) >= 3, selector


def test_a_service_with_keys_is_asked_with_the_one_that_was_typed(browser: Browser, tmp_path: Path) -> None:
    with (
        live_service(tmp_path, score_key="the-right-one") as service,
        watched_page(browser, str(service.http.base_url)) as watched,
    ):
        page = watched.page
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.get_by_label("Key", exact=True).fill("a-wrong-one")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("does not accept this key")
        page.get_by_label("Key", exact=True).fill("the-right-one")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("status").first).to_have_text("Ready")
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator("#rows tr")).to_have_count(3)
        assert not any("the-right-one" in asked for asked in watched.urls)
        assert page.evaluate("() => localStorage.length") == 0
        page.reload()
        expect(page.locator("#weights")).to_have_text("version 0")
        expect(dialog).to_be_hidden()


def test_without_the_key_the_page_waits_and_scoring_asks_again(browser: Browser, tmp_path: Path) -> None:
    with (
        live_service(tmp_path, score_key="the-right-one") as service,
        watched_page(browser, str(service.http.base_url)) as watched,
    ):
        page = watched.page
        page.get_by_role("button", name="Not now").click()
        expect(page.get_by_role("status").first).to_have_text("An API key is required")
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_nothing_is_asked_while_nobody_looks(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.clock.install()
        asked: list[str] = []
        page.goto(url)
        expect(page.locator("#weights")).to_have_text(re.compile("version"))
        page.on("request", lambda request: asked.append(request.url))
        show(page, is_hidden=True)
        page.clock.run_for(60_000)
        assert asked == []
        show(page, is_hidden=False)
        with page.expect_response("**/v1/weights"):
            pass
        assert f"{url}/readyz" in asked


def show(page: Page, *, is_hidden: bool) -> None:
    page.evaluate(
        """isHidden => {
            Object.defineProperty(document, 'hidden', { get: () => isHidden, configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        is_hidden,
    )


def test_a_service_that_went_away_is_asked_more_and_more_rarely(browser: Browser, tmp_path: Path) -> None:
    asked: list[str] = []
    with live_service(tmp_path) as service, browser.new_context() as context:
        page = context.new_page()
        page.clock.install()
        page.goto(str(service.http.base_url))
        expect(page.get_by_role("status").first).to_have_text("Ready")
        page.wait_for_load_state("networkidle")
        page.on("request", lambda request: asked.append(request.url))
        page.route("**/*", lambda route: route.abort())
        for waited_seconds, next_seconds in pairwise([2, 4, 8, 16, 30, 30]):
            num_asked = len(asked)
            with page.expect_request("**/readyz"):
                page.clock.run_for(1000 * waited_seconds)
            expect(page.locator("#away")).to_contain_text(f"retrying in {next_seconds} s.")
            assert len(asked) == num_asked + 1
        expect(page.get_by_role("status").first).to_have_text("No answer")
        page.unroute_all()
        page.clock.run_for(30_000)
        expect(page.get_by_role("status").first).to_have_text("Ready")
        expect(page.locator("#away")).to_be_hidden()
