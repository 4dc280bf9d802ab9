"""``vigor score`` over long files: what an interrupted run leaves behind, how it goes on, and how far it is."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.cli.command_line_fake import DEADLINE_SECONDS, CommandLineFake, shown_on_a_terminal, write_groups
from tests.client.fake_service import problem
from tests.client.test_client import DIGEST
from tests.support.preloaded_process import preloaded
from vigor_client.cli.main import main
from vigor_client.cli.progress import ProgressLine

IDS = ("q1", "q2", "q3", "q4", "q5")


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
        (3, {"completions": []}, ":3: the result has 0 completions, the group on line 3 has 2"),
        (
            1,
            {"weight_digest": "xxh3-128:" + "1" * 32},
            f":2: the result comes from the weights {DIGEST}, ",
        ),
        (1, {"colour": "blue"}, ":1: this line is not a result"),
        (1, {"weight_digest": "none"}, ":1: this line is not a result"),
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
    assert f"{partial}: the results come from the weights {DIGEST}, but the service has {fake.weight_digest}" in line
    assert before.startswith(partial.read_bytes())
    assert not out.exists()


def test_resuming_without_a_file_is_wrong_usage(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["score", str(source), "--resume"])
    assert raised.value.code == 2
    assert "give both" in capsys.readouterr().err


def test_a_terminal_shows_how_far_it_is(source: Path, url: str) -> None:
    shown = shown_on_a_terminal("score", str(source), "--url", url)
    assert "\r5 of 5 groups, " in shown
    assert shown.rstrip().endswith("0:00:00 left")  # behind it, blanks hide a longer line of before
    assert shown.endswith("\r\n")


def test_who_wants_quiet_sees_nothing(source: Path, url: str) -> None:
    assert shown_on_a_terminal("score", str(source), "--url", url, "--quiet") == ""


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


def test_groups_that_are_refused_stand_in_the_output_and_in_the_last_line(
    url: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", "q1", "bad", "q3")
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 3
    first, refused, last = map(json.loads, out.read_text().splitlines())
    assert [first["id"], refused["id"], last["id"]] == ["q1", "bad", "q3"]
    assert (refused["error"]["code"], "completions" in refused) == ("invalid_request", False)
    said = f"1 of 3 groups have an error and no scores: {source}:2: `prompt_ids` item 0: id 9 is out of range"
    assert capsys.readouterr().err == f"vigor: {said}\n"


def test_a_long_list_of_refused_groups_is_cut(
    url: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", *(f"bad-{number}" for number in range(25)))
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor: 25 of 25 groups ")
    assert line.endswith("; 15 more in the output")
    assert len(line) < 2000


def test_a_run_goes_on_behind_a_group_that_was_refused(
    fake: CommandLineFake, url: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", "bad", "q2", "q3")
    fake.problems["q3"] = problem(503, "weights_poisoned")
    assert main(["score", str(source), "--url", url, "--out", str(out), "--groups-per-request", "1"]) == 1
    fake.problems.clear()
    fake.group_counts.clear()
    assert resume(source, out, url) == 3
    assert fake.group_counts == [1]
    assert ids_in(out) == ["bad", "q2", "q3"]
    assert "1 of 3 groups have an error and no scores: 1 more in the output" in capsys.readouterr().err


def test_a_service_that_takes_little_gets_little_at_once(
    fake: CommandLineFake, source: Path, out: Path, url: str
) -> None:
    fake.max_body_bytes = 250
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 0
    assert ids_in(out) == list(IDS)
    assert fake.group_counts == [-5, 2, -3, 1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252", "cp932", "utf-16"])
def test_the_output_is_json_in_any_encoding_of_standard_output(encoding: str, url: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    ids = ["題-1", "é😀", "q3"]
    lines = [json.dumps({"id": id_, "prompt": "hi", "completions": ["a", "b"]}) for id_ in ids]
    source.write_text("\n".join(lines))
    done = run_command("score", str(source), "--url", url, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["id"] for line in done.stdout.decode(encoding).splitlines()] == ids


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vigor_client.cli.main", *arguments]
    env = {**preloaded(), **environment}
    return subprocess.run(command, capture_output=True, env=env, timeout=DEADLINE_SECONDS, check=False)


@pytest.mark.parametrize("command", ["status", "score"])
def test_output_that_cannot_be_written_is_one_line(command: str, source: Path, url: str) -> None:
    arguments = [sys.executable, "-m", "vigor_client.cli.main", command, *([str(source)] if command == "score" else [])]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*arguments, "--url", url], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_SECONDS, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"vigor: No space left on device\n")


@pytest.mark.parametrize(("closed", "said"), [(">&-", b"standard output is closed: give --out"), ("<&-", b"")])
def test_a_closed_standard_stream_is_no_trace(closed: str, said: bytes, source: Path, url: str) -> None:
    line = f'"{sys.executable}" -m vigor_client.cli.main score "{source}" --url {url} {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    assert said in done.stderr
    assert (done.returncode, b"Traceback" in done.stderr) == (1 if said else 0, False)


def test_a_directory_is_no_file_for_results(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(source), "--url", "http://127.0.0.1:9", "--out", str(tmp_path)]) == 1
    assert f"{tmp_path}: is a directory; give the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_key_file_may_be_saved_in_any_encoding(
    encoding: str, fake: CommandLineFake, url: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes("s3cret\r\n".encode(encoding))
    assert main(["status", "--url", url, "--api-key-file", str(tmp_path / "key")]) == 0
    assert fake.keys == {"Bearer s3cret"}


def test_a_key_file_that_is_no_text_is_named_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(b"s3cret\xff\x80")
    assert main(["status", "--url", "http://127.0.0.1:9", "--api-key-file", str(tmp_path / "key")]) == 1
    said = capsys.readouterr().err
    assert said == f"vigor: {tmp_path}/key: is not text; give a file with the key on one line\n"
