"""The page in Chromium: plots, filters, completions; no request leaves it and nothing in it complains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import CHROMIUM, chromium, watched_page
from tests.trainer.example_records import example_completion, example_record
from tests.trainer.monitoring.test_run_info import example_info
from tests.trainer.reports.example_runs import example_evaluation, write_evaluations, write_run
from vigor_trainer.monitoring.evaluations import evaluation_file
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.run_info import write_run_info
from vigor_trainer.monitoring.step_times import StepRecord
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import read_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make tools` installs it"),
]
READABLE = 4.5  # contrast of normal text, level AA of WCAG 2
INTERACTIVE_SECONDS = 10.0  # 0.6 s was measured, on a machine with other work
PLANTED = '<img src="https://example.org/x"><script>document.title = "planted"</script> </script> needle'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextmanager
def opened(browser: Browser, directory: Path, *runs: Path, **options: Any) -> Iterator[Page]:  # noqa: ANN401 - Playwright's own
    """Open the report of these runs, drawn."""
    path = directory / "report.html"
    write_report(path, read_runs(runs), title="Two runs", facts=[("Model", "<b>tiny</b>")])
    with watched_page(browser, path.as_uri(), **options) as watched:
        expect(watched.page.locator("html")).to_have_attribute("data-drawn", "true", timeout=60_000)
        yield watched.page


def axis_titles(page: Page, place: str) -> list[str | None]:
    """The titles of the x axis and of the y axis of the plot in this place."""
    titles = [page.locator(f"{place} .{axis}title") for axis in "xy"]
    return [title.text_content() if title.count() else None for title in titles]


def contrast(page: Page, place: str) -> float:
    """The contrast of a text with the nearest background behind it, as WCAG 2 defines it."""
    return page.locator(place).first.evaluate(
        """element => {
          const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const part = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
          const luminance = (colour) => {
            const [red, green, blue] = channels(colour).map((value) => part(value / 255));
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
          };
          const ink = luminance(getComputedStyle(element).color);
          let behind = element;
          while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
          const paper = luminance(getComputedStyle(behind).backgroundColor);
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }"""
    )


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
        assert {"entropy", "length", "repetition", "scaled-length", "truncated"} <= set(names)
        for name in names:
            assert all(axis_titles(page, f"[data-plot={name}]")), f"an axis of {name} has no title"
        expect(page.locator("#time .notes")).to_have_text("with-rank: not recorded. without-rank: not recorded.")
        assert set(page.locator("#settings td").all_text_contents()) == {"not recorded"}
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
        told = page.locator("#runs td:nth-child(2)")
        expect(told).to_have_text(["sampled 50 % [40 %, 60 %] → 80 % [70 %, 90 %]", "–"])
        expect(page.locator("#examples")).to_contain_text("Completions of held-out questions: not recorded.")


def test_completions_before_and_after_are_shown_word_for_word(browser: Browser, tmp_path: Path) -> None:
    run = write_evaluations(
        write_run(tmp_path / "run", num_steps=2), [0.0] * 4, [1.0] * 4, completion=PLANTED, finish_reason="length"
    )
    with opened(browser, tmp_path, run) as page:
        heads = page.locator("#examples th")
        expect(heads).to_have_text(["question", "run, step 0", "run, step 4"])
        expect(page.locator("#examples tr")).to_have_count(4)
        cells = page.locator("#examples tr:nth-child(2) td")
        expect(cells.nth(1)).to_have_text(f"✗ wrongtruncated3 tokens{PLANTED}")
        expect(cells.nth(2)).to_contain_text("✓ right")
        expect(page.locator("#runs td:nth-child(3)")).to_have_text("100 % → 100 %")
        expect(page.locator(".verdict li").first).to_contain_text("run improved the model")


def test_the_seconds_of_a_step_are_stacked_and_told_with_their_sum(browser: Browser, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    completions = [example_completion(0, index=index, rank=index + 1.0) for index in range(2)]
    files.append(example_record(0, num_completions=2, score_compute_seconds=3.0), completions)
    files.append_step(
        StepRecord(step=0, seconds=20.0, prepare_seconds=12.0, optimize_seconds=5.0, evaluate_seconds=2.0)
    )
    with opened(browser, tmp_path, tmp_path / "run", write_run(tmp_path / "old", num_steps=1)) as page:
        expect(page.locator("#time tr").first).to_have_text("part of a steprun")
        expect(page.locator("#time tr:nth-child(2)")).to_have_text("sampling6.000 s, 30.0 %")
        expect(page.locator("#time tr.total")).to_have_text("step, measured20.000 s, 100.0 %")
        expect(page.locator("#time .notes")).to_contain_text("old: not recorded.")
        assert axis_titles(page, "#time") == ["time (seconds per optimizer step)", "run"]
        expect(page.locator("#time .legendtext")).to_have_count(9)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # by TRL 1.16
def test_settings_that_differ_are_marked(browser: Browser, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, num_steps=1) for name in "ab"]
    for run, name in zip(runs, ("<i>one</i>", "two"), strict=True):
        write_run_info(run, example_info("--system_prompt", name))
    with opened(browser, tmp_path, *runs) as page:
        expect(page.locator("#settings .differs")).to_have_text("≠ system prompt<i>one</i>two")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_text_can_be_read(
    browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    run = write_evaluations(write_run(tmp_path / "a-run-with-a-long-name", num_steps=2), [0.0] * 4, [1.0] * 4)
    with opened(browser, tmp_path, run, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for place in ("h1", ".verdict li", "#examples th", ".right", ".wrong", "#settings td"):
            assert contrast(page, place) >= READABLE, place


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
