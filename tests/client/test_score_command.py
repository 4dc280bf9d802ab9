"""``vigor score`` over long files: what an interrupted run leaves behind, how it goes on, and how far it is."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.test_cli import DEADLINE_SECONDS, CommandLineFake, serving, write_groups
from tests.client.test_client import DIGEST
from vigor_client.cli import main
from vigor_client.progress_line import ProgressLine

IDS = ("q1", "q2", "q3", "q4", "q5")


@pytest.fixture
def fake() -> CommandLineFake:
    return CommandLineFake()


@pytest.fixture
def url(fake: CommandLineFake) -> Iterator[str]:
    with serving(fake) as url:
        yield url


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "in.jsonl", *IDS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def partial(source: Path, out: Path, url: str) -> Path:
    """What a run leaves that was interrupted after three groups, in the middle of a line."""
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 0
    lines = out.read_bytes().splitlines(keepends=True)
    partial = out.with_name("out.jsonl.partial")
    partial.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    out.unlink()
    return partial


def resume(source: Path, out: Path, url: str, *options: str) -> int:
    return main(["score", str(source), "--url", url, "--out", str(out), "--resume", *options])


def ids_in(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def rewrite(partial: Path, number: int, **changed: object) -> None:
    """Change members of the result on a line."""
    lines = partial.read_text().splitlines(keepends=True)
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changed}) + "\n"
    partial.write_text("".join(lines))


def test_a_run_goes_on_after_the_last_whole_line(
    fake: CommandLineFake, source: Path, out: Path, partial: Path, url: str
) -> None:
    fake.group_counts.clear()
    assert resume(source, out, url, "--groups-per-request", "1") == 0
    assert ids_in(out) == list(IDS)
    assert fake.group_counts == [1, 1]
    assert not partial.exists()


def test_a_run_that_was_complete_but_for_its_name_needs_no_service(source: Path, out: Path, url: str) -> None:
    assert resume(source, out, url) == 0
    out.rename(out.with_name("out.jsonl.partial"))
    assert resume(source, out, "http://127.0.0.1:9") == 0
    assert ids_in(out) == list(IDS)


def test_without_the_option_a_run_begins_at_the_beginning(
    fake: CommandLineFake, source: Path, out: Path, partial: Path, url: str
) -> None:
    assert partial.exists()
    fake.group_counts.clear()
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 0
    assert (fake.group_counts, ids_in(out)) == ([5], list(IDS))


@pytest.mark.parametrize(
    ("number", "changed", "said"),
    [
        (2, {"id": "q9"}, ":2: the result has the id 'q9', the group on line 2 has 'q2'"),
        (3, {"completions": []}, ":3: 0 completions, the group on line 3 has 2"),
        (1, {"weight_digest": "xxh3-128:" + "1" * 32}, f":2: the weights {DIGEST}, the lines before have xxh3-128:111"),
        (1, {"colour": "blue"}, ":1: this is no result"),
        (1, {"weight_digest": "none"}, ":1: this is no result"),
    ],
)
def test_results_of_another_run_are_refused_by_their_line(
    number: int,
    changed: dict[str, object],
    said: str,
    fake: CommandLineFake,
    source: Path,
    out: Path,
    partial: Path,
    url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewrite(partial, number, **changed)
    fake.group_counts.clear()
    before = partial.read_bytes()
    assert resume(source, out, url) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{partial}{said}" in line
    assert "without --resume" in line
    assert fake.group_counts == []
    assert partial.read_bytes() == before


def test_more_results_than_groups_are_refused(
    tmp_path: Path, out: Path, partial: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = write_groups(tmp_path / "shorter.jsonl", *IDS[:2])
    assert partial.exists()
    assert resume(shorter, out, url) == 1
    assert f"{partial}:3: there are more results than groups" in capsys.readouterr().err


def test_weights_that_are_not_served_any_more_end_the_run(
    fake: CommandLineFake, source: Path, out: Path, partial: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.weight_digest = "xxh3-128:" + "2" * 32
    before = partial.read_bytes()
    assert resume(source, out, url) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{partial}: scored by the weights {DIGEST}, the service has {fake.weight_digest}" in line
    assert before.startswith(partial.read_bytes())
    assert not out.exists()


def test_resuming_without_a_file_is_wrong_usage(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["score", str(source), "--resume"])
    assert raised.value.code == 2
    assert "give both" in capsys.readouterr().err


def shown_on_a_terminal(*arguments: str) -> str:
    """What a run of the command writes to a terminal on standard error."""
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "vigor_client.cli", "score", *arguments]
    with os.fdopen(terminal, "rb", buffering=0) as screen, os.fdopen(end, "wb") as stderr:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, timeout=DEADLINE_SECONDS, check=False)
        os.set_blocking(screen.fileno(), False)
        shown = screen.read(1 << 16) or b""
    assert done.returncode == 0
    return shown.decode()


def test_a_terminal_shows_how_far_it_is(source: Path, url: str) -> None:
    shown = shown_on_a_terminal(str(source), "--url", url)
    assert "\r5 of 5 groups, " in shown
    assert shown.endswith("0:00:00 left\r\n")


def test_who_wants_quiet_sees_nothing(source: Path, url: str) -> None:
    assert shown_on_a_terminal(str(source), "--url", url, "--quiet") == ""


def test_the_line_counts_what_was_there_and_estimates_from_what_came() -> None:
    now_seconds = iter([100.0, 100.1, 102.0, 103.0]).__next__
    screen = io.StringIO()
    line = ProgressLine(screen, 3_004, done=1_000, clock_seconds=now_seconds)
    for _ in range(3):
        line.advance()
    line.close()
    assert screen.getvalue().split("\r")[1:] == [
        "1,002 of 3,004 groups, 1 groups/s, 0:33:22 left",
        "1,003 of 3,004 groups, 1 groups/s, 0:33:21 left\n",
    ]
