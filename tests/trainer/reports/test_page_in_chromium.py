"""The page in Chromium: plots, filters, completions; no request leaves it and nothing in it complains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import CHROMIUM, chromium, watched_page
from tests.trainer.example_records import example_completion, example_record
from tests.trainer.reports.example_runs import example_evaluation, write_run
from vigor_trainer.monitoring.evaluations import evaluation_file
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import read_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make tools` installs it"),
]
INTERACTIVE_SECONDS = 10.0  # 0.6 s was measured, on a machine with other work
PLANTED = '<img src="https://example.org/x"><script>document.title = "planted"</script> </script> needle'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextmanager
def opened(browser: Browser, directory: Path, *runs: Path) -> Iterator[Page]:
    """Open the report of these runs, drawn."""
    path = directory / "report.html"
    write_report(path, read_runs(runs), title="Two runs", facts=[("Model", "<b>tiny</b>")])
    with watched_page(browser, path.as_uri()) as watched:
        expect(watched.page.locator("html")).to_have_attribute("data-drawn", "true", timeout=60_000)
        yield watched.page


def plotted(page: Page) -> list[str]:
    """The names of the plots that show something."""
    sections = page.locator("[data-plot]:visible").all()
    assert all(section.locator(".trace, .point").count() > 0 for section in sections)
    return [str(section.get_attribute("data-plot")) for section in sections]


def test_two_runs_are_plotted_together_and_what_is_absent_is_left_out(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("with-rank", "without-rank"))]
    with opened(browser, tmp_path, *runs) as page:
        names = plotted(page)
        assert {"accuracy", "auc", "bins-accuracy", "bins-length", "bins-repetition", "norm-length"} <= set(names)
        assert {"entropy", "length", "repetition", "scaled-length"} <= set(names)
        assert not {"kl", "held-out"} & set(names)
        expect(page.locator("#runs td:first-child")).to_have_text(["with-rank", "without-rank"])
        expect(page.locator("#facts dd")).to_have_text("<b>tiny</b>")
        accuracy = page.locator("[data-plot=accuracy] .legendtext")
        assert accuracy.all_text_contents() == ["with-rank", "without-rank"]
        page.locator("#auc-reward").select_option("entropy")
        expect(page.locator("[data-plot=auc] .legendtext").first).to_have_text("with-rank: entropy")


def test_held_out_accuracy_is_plotted_and_told_before_and_after(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("evaluated", "other")]
    evaluations = [example_evaluation(0, Estimate(0.5, 0.4, 0.6)), example_evaluation(6, Estimate(0.8, 0.7, 0.9))]
    evaluation_file(runs[0]).append(*evaluations)
    with opened(browser, tmp_path, *runs) as page:
        assert plotted(page)[0] == "held-out"
        told = page.locator("#runs td:last-child")
        expect(told).to_have_text(["sampled 50 % [40 %, 60 %] → 80 % [70 %, 90 %]", "–"])


def test_completions_are_filtered_by_rank_label_step_run_and_text(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, num_steps=3, num_groups=1, seed=seed) for seed, name in enumerate("ab")]
    samples = [sample for run in read_runs(runs) for group in run.groups for sample in group.samples]
    wanted = {
        "all": len(samples),
        "best": sum(sample.rank == 1 for sample in samples),
        "worst": sum(sample.rank == 8 for sample in samples),
        "good-wrong": sum(sample.rank <= 4 and not sample.is_correct for sample in samples),
        "bad-right": sum(sample.rank > 4 and bool(sample.is_correct) for sample in samples),
    }
    wanted["disagree"] = wanted["good-wrong"] + wanted["bad-right"]
    assert wanted["disagree"] > 0
    with opened(browser, tmp_path, *runs) as page:
        for kind, number in wanted.items():
            page.locator("#kind").select_option(kind)
            expect(page.locator("#count")).to_have_text(f"{number} of 48 completions")
        page.locator("#kind").select_option("best")
        page.locator("#step").select_option("1")
        page.locator("#run").select_option("b")
        expect(page.locator(".card.prompt b")).to_have_text("b, step 1")
        expect(page.locator(".card:not(.prompt) b")).to_contain_text("rank 1")
        page.locator("#text").fill("QUESTION 0 OF")
        expect(page.locator("#count")).to_have_text("1 of 48 completions")
        page.locator("#text").fill("no such text")
        expect(page.locator("#count")).to_have_text("0 of 48 completions")


def test_what_a_completion_says_is_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    group = [
        example_completion(0, index=index, rank=index + 1.0, prompt=PLANTED, completion=PLANTED) for index in range(2)
    ]
    RunFiles(tmp_path / "run").append(example_record(0, num_completions=2), group)
    with opened(browser, tmp_path, tmp_path / "run") as page:
        expect(page.locator(".card pre")).to_have_text([PLANTED] * 3)
        assert page.title() == "Two runs"
        assert page.locator("img").count() == 0


def test_ten_thousand_completions_are_there_at_once_and_few_in_the_document(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=157, num_groups=8, num_words=40)
    with opened(browser, tmp_path, run) as page:
        expect(page.locator("#count")).to_have_text("10,000 of 10,000 completions; 10,048 were recorded")
        seconds = page.evaluate("performance.getEntriesByName('interactive')[0].startTime") / 1000
        assert seconds < INTERACTIVE_SECONDS
        assert page.locator(".group").count() < 12
        page.locator("#groups").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        expect(page.locator(".card.prompt b").last).to_have_text("step 156")
        assert page.locator(".group").count() < 12


def test_on_paper_the_groups_in_view_are_whole(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path, write_run(tmp_path / "run", num_steps=40, num_groups=1)) as page:
        num_in_view = page.locator(".group").count()
        page.emulate_media(media="print", color_scheme="dark")
        assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(255, 255, 255)"
        card = page.locator(".card pre").last
        assert card.evaluate("pre => pre.scrollHeight <= pre.clientHeight")
        assert page.pdf()[:5] == b"%PDF-"
        assert page.locator(".group").count() == num_in_view
