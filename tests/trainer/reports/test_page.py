"""The page as a file: what is in it, and that nothing in it can be more than text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.example_records import example_completion, example_record
from tests.trainer.monitoring.test_run_info import example_info
from tests.trainer.reports.example_runs import write_evaluations, write_run
from vigor_trainer.__main__ import main
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.run_info import INFO_FILE, write_run_info
from vigor_trainer.reports.listing import listing_of, share_shown
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import read_runs

PLANTED = '<script>document.title = "planted"</script></script><!-- {{script}} \udc80'


def written(
    tmp_path: Path, *directories: Path, title: str | None = "A <run>", facts: Sequence[tuple[str, str]] = ()
) -> tuple[str, dict[str, Any]]:
    path = tmp_path / "pages" / "report.html"
    write_report(path, read_runs(directories), title=title, facts=facts)
    text = path.read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return text, json.loads(data)


def test_the_page_has_the_data_of_all_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, num_steps=2, seed=seed) for seed, name in enumerate("ab")]
    text, data = written(tmp_path, *runs, facts=[("Model", "tiny & small")])
    assert "<h1>A &lt;run&gt;</h1>" in text
    assert data["facts"] == [["Model", "tiny & small"]]
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    for run in data["runs"]:
        assert (run["num_rounds"], run["num_completions"], run["version"]) == (2, 32, 1)
        assert run["accuracy"]["x"] == [0, 1]
        assert run["metrics"]["kl"]["x"] == []
        assert {len(column) for column in run["completions"]["columns"].values()} == {32}


def test_the_policy_allows_its_own_scripts_by_their_hash_and_no_request(tmp_path: Path) -> None:
    text, _ = written(tmp_path, write_run(tmp_path / "run", num_steps=1))
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == 2
    without_plotly = re.sub(r"<script>/\*\*?\s*\n?\* plotly.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", without_plotly)


def test_a_planted_script_stays_text(tmp_path: Path) -> None:
    group = [
        example_completion(0, index=index, prompt=PLANTED, completion=PLANTED, final_answer=PLANTED)
        for index in range(2)
    ]
    RunFiles(tmp_path / "run").append(example_record(0, num_completions=2), group)
    text, data = written(tmp_path, tmp_path / "run", title=PLANTED)
    assert data["runs"][0]["completions"]["columns"]["text"] == [PLANTED] * 2
    assert data["runs"][0]["completions"]["prompts"] == [PLANTED]
    assert "<script>document" not in text
    assert text.count("</script>") == 3


def test_the_title_is_made_of_the_numbers_and_the_sentences_stand_below_any_title(tmp_path: Path) -> None:
    run = write_evaluations(write_run(tmp_path / "<run>", num_steps=1), [0.4, 0.4], [0.9, 0.8])
    measured = "40 % [40, 40] → 85 % [80, 90], +45 points [+40, +50]"
    made = f"&lt;run&gt; improved the model: sampled held-out accuracy rose {measured}"
    text, _ = written(tmp_path, run, title=None)
    assert f"<title>{made}</title>" in text
    assert f"<h1>{made}</h1>" in text
    assert f"<li>{made}.</li>" in text
    text, _ = written(tmp_path, run, title="Mine")
    assert "<h1>Mine</h1>" in text
    assert f"<li>{made}.</li>" in text


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # by TRL 1.16
def test_settings_stand_side_by_side_and_those_that_differ_are_marked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, num_steps=1) for name in ("a", "b", "old")]
    for seed in (1, 2):
        info = example_info("--seed", str(seed))
        same = {
            "num_prompts": 40,
            "command": "vigor-trainer --dataset addition",
            "started": "2026-01-01T00:00:00+00:00",
        }
        write_run_info(runs[seed - 1], replace(info, **same))
    (runs[2] / INFO_FILE).write_text("{}")  # of another version
    _, data = written(tmp_path, *runs[:2])
    settings = {setting["name"]: setting for setting in data["settings"]}
    assert [name for name, setting in settings.items() if setting["differs"]] == ["seed"]
    assert settings["training dataset"]["values"] == ["addition, 40 prompts"] * 2
    assert settings["command"]["values"] == ["vigor-trainer --dataset addition"] * 2
    assert settings["machine"]["values"][0].endswith(" cores; no accelerator used")
    assert "torch " in settings["versions"]["values"][0]
    _, data = written(tmp_path, runs[2])
    assert {setting["values"][0] for setting in data["settings"]} == {"not recorded"}


def test_the_truncated_share_is_that_before_and_after(tmp_path: Path) -> None:
    cut = write_evaluations(write_run(tmp_path / "cut", num_steps=1), [0.5], [0.5], finish_reason="length")
    old = write_run(tmp_path / "old", num_steps=1)
    _, data = written(tmp_path, cut, old)
    assert [run["held_out_truncated"] for run in data["runs"]] == [[1, 1], None]
    assert data["runs"][0]["truncated"]["value"] == [0]


def test_messages_are_shown_under_their_roles(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Add."}, {"role": "user", "content": [{"type": "text", "text": "1+1"}]}]
    RunFiles(tmp_path / "run").append(example_record(0, num_completions=1), [example_completion(0, prompt=prompt)])
    [run] = read_runs([tmp_path / "run"])
    assert listing_of(run, 1.0).prompts == ['system: Add.\n\nuser: [{"type": "text", "text": "1+1"}]']


def test_of_a_large_run_whole_groups_are_chosen_evenly(tmp_path: Path) -> None:
    [run] = read_runs([write_run(tmp_path / "run", num_steps=50, num_groups=2, size=4)])
    share = share_shown([run], max_completions=100)
    listing = listing_of(run, share)
    assert share == 0.25
    assert [first for first, _, _ in listing.groups] == list(range(0, 100, 4))
    assert [step for _, _, step in listing.groups] == list(range(1, 50, 2))
    num_characters = sum(sample.num_characters for group in run.groups for sample in group.samples)
    assert share_shown([run], max_completions=1000, max_characters=num_characters // 2) == pytest.approx(0.5, abs=1e-3)
    assert share_shown([run], max_completions=1000) == 1


def test_the_command_writes_the_page_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = write_run(tmp_path / "run", num_steps=4), tmp_path / "page.html"
    assert main(["report", str(run), "--output", str(page), "--max_completions", "32"]) == 0
    verdict, place = capsys.readouterr().out.splitlines()
    assert verdict == "run: no held-out accuracy was measured"
    assert re.fullmatch(rf"{re.escape(str(page))}: 32 of 64 completions, \d\.\d MB", place)
    assert f"<title>{verdict}</title>" in page.read_text()
    assert main(["report", str(run), "--output", str(page), "--title", "My & run"]) == 0
    assert "<h1>My &amp; run</h1>" in page.read_text()


def test_the_command_names_what_it_does_not_understand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"vigor-trainer stopped: {tmp_path} has no rounds.jsonl" in capsys.readouterr().err
    for flags, said in ((["--max_completions", "0"], "give 1 or more"), (["--titel", "x"], "unrecognized arguments")):
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(tmp_path), *flags])
        assert said in capsys.readouterr().err
