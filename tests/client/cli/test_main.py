"""The command line against a fake service on a real socket."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

import vigor_client
from tests.client.cli.command_line_fake import (
    DEADLINE_SECONDS,
    WEIGHTS,
    CommandLineFake,
    write_groups,
)
from tests.client.fake_service import problem
from tests.support.preloaded_process import preloaded
from vigor_client.cli.main import main
from vigor_client.schemas.weights import UpdateProgress, UpdateState


def test_each_line_is_scored_in_order_a_bounded_number_at_a_time(
    fake: CommandLineFake, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", "q1", "q2", "q3", "q4", "q5")
    assert main(["score", str(source), "--url", url, "--groups-per-request", "2"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["id"] for result in results] == ["q1", "q2", "q3", "q4", "q5"]
    assert [len(result["completions"]) for result in results] == [2] * 5
    assert {result["weight_version"] for result in results} == {3}
    assert fake.group_counts == [2, 2, 1]


def test_results_appear_under_their_name_when_they_are_complete(
    fake: CommandLineFake, url: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    source = write_groups(tmp_path / "in.jsonl", "q1", "q2")
    fake.problems["q2"] = problem(503, "weights_poisoned")
    arguments = ["score", str(source), "--url", url, "--out", str(out), "--groups-per-request", "1"]
    assert main(arguments) == 1
    assert not out.exists()
    fake.problems.clear()
    assert main(arguments) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["q1", "q2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_wrong_lines_are_named_before_anything_is_scored(
    fake: CommandLineFake, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", "q1")
    source.write_text(source.read_text() + '{"prompt": "hi"}\nnot json\n{"prompt": "x", "completions": [[-1]]}\n')
    assert main(["score", str(source), "--url", url]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert f"{source}:3: `completions`: is missing" in line
    assert f"{source}:4: this is not JSON: expected ident" in line
    assert f"{source}:5: completion 0, `ids` item 0: is -1; give 0 or more" in line
    assert fake.group_counts == []


@pytest.mark.parametrize("place", ["nowhere.jsonl", "."])
def test_an_input_that_is_no_file_is_one_line(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / place), "--url", "http://127.0.0.1:9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor: ")
    assert str(tmp_path) in line


def test_status_shows_model_weights_and_queue(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", url]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"service   {url}",
        "state     ready",
        "model     tiny (LlamaForCausalLM, float32 on cpu)",
        "measured  1,234 of 1,234 parameters, packed",
        "norms     estimated with 16 random probes",
        "weights   version 0, ready, since 2026-01-01T00:00:00Z",
        f"digest    {fake.tensor_list().weight_digest}",
        "update    none",
        "queue     2 requests, 34 tokens",
    ]


def test_status_shows_how_far_an_update_is(fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    states: dict[UpdateState, str] = {"receiving": "1.5 of 4.0 MB received", "verifying": "verifying"}
    for state, shown in states.items():
        fake.update_progress = UpdateProgress(
            weight_version=8, state=state, received_bytes=1_500_000, num_bytes=4_000_000
        )
        assert main(["status", "--url", url]) == 0
        assert f"\nupdate    version 8, {shown}\n" in capsys.readouterr().out


def test_status_of_a_service_that_is_not_ready_is_a_failure(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.ready = False
    assert main(["status", "--url", url]) == 1
    assert "state     not ready: draining" in capsys.readouterr().out


def test_status_of_a_service_that_loads_says_how_far_it_is(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.loading_answers = 1
    assert main(["status", "--url", url]) == 1
    assert capsys.readouterr().out == f"service   {url}\nstate     not ready: it is being loaded (3 s so far)\n"


def test_wait_ends_when_the_service_is_ready(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.loading_answers = 1
    assert main(["wait", "--url", url]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"vigor: waiting for {url}: it is being loaded (3 s so far)\n"
    assert re.fullmatch(rf"ready     {url}, after \d s\n", captured.out)


def test_wait_for_nothing_fails_in_time_with_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "--url", "http://127.0.0.1:9", "--ready-timeout-seconds", "0.6"]) == 1
    waiting, failed = capsys.readouterr().err.splitlines()
    assert waiting.startswith("vigor: waiting for http://127.0.0.1:9: cannot reach the service: GET http")
    assert failed.startswith("vigor: http://127.0.0.1:9 is not ready after 0.6 s: cannot reach the service: GET http")


def test_calls_wait_for_a_service_that_loads_and_say_so(
    fake: CommandLineFake, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_groups(tmp_path / "in.jsonl", "q1")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    for command in (["score", str(source)], ["push", str(tmp_path), "--weight-version", "5", "--quiet"]):
        fake.loading_answers = 1
        assert main([*command, "--url", url]) == 0
        assert capsys.readouterr().err == f"vigor: waiting for {url}: it is being loaded (3 s so far)\n"
        fake.loading_answers = 1
        assert main([*command, "--url", url, "--ready-timeout-seconds", "0"]) == 1
        assert capsys.readouterr().err == f"vigor: {url} is not ready after 0 s: it is being loaded (3 s so far)\n"


def test_status_of_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vigor: cannot reach the service: GET http://127.0.0.1:9/readyz")
    assert len(captured.err.splitlines()) == 1


def test_a_checkpoint_is_pushed_once(
    fake: CommandLineFake, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    push = ["push", str(tmp_path), "--url", url, "--weight-version"]
    assert main([*push, "5"]) == 0
    assert "published version 5" in capsys.readouterr().out
    assert fake.weight_version == 5
    assert main([*push, "6"]) == 0
    assert capsys.readouterr().out.startswith("nothing sent: the service has these weights already (version 5")


def test_a_checkpoint_that_does_not_fit_is_named_in_one_line(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert main(["push", str(tmp_path), "--url", url, "--weight-version", "5", "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the model has no such tensor" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "vigor: unknown command dance (see vigor --help)"),
        (["pus", "x"], "vigor: unknown command pus; did you mean push? (see vigor --help)"),
        (["--verison"], "vigor: unknown option --verison; did you mean --version? (see vigor --help)"),
        (["push", "somewhere"], "vigor push: give --weight-version (see vigor push --help)"),
        (
            ["push", "somewhere", "--weigth-version=5"],
            "unknown option --weigth-version; did you mean --weight-version?",
        ),
        (["push", "a", "b", "--weight-version", "5"], "vigor: too many arguments: b"),
        (
            ["push", "somewhere", "--weight-version", "-1"],
            "--weight-version: '-1' is not a whole number from 0 to 900719",
        ),
        (
            ["score", "in.jsonl", "--groups-per-request", "0"],
            "--groups-per-request: '0' is not a whole number from 1 to",
        ),
        (["score", "in.jsonl", "--groups-per-request", "many"], "--groups-per-request: 'many' is not a whole number"),
        (["score", "in.jsonl", "--wait-seconds", "601"], "--wait-seconds: '601' is not a number from 0 to 600"),
        (["wait", "--ready-timeout-seconds", "x"], "--ready-timeout-seconds: 'x' is not a number of 0 or more"),
        (["score", "in.jsonl", "--reward", "vigr"], "--reward: 'vigr' is none of vigor, self_certainty, "),
        (["score", "in.jsonl", "--compute", "signal"], "did you mean signals?"),
        (["score", "in.jsonl", "--compute", "norm", "--reward", "entropy"], "needs `signals`; add it to `compute`"),
        (["score", "in.jsonl", "--compute", "norm", "norm"], "`compute` holds a name twice; give each name once"),
        (["score", "in.jsonl", "--resume"], "--resume continues the file of --out: give both"),
        (["status", "--api-key", "secret"], "vigor status: unknown option --api-key; did you mean --api-key-file?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor")
    assert said in line
    assert "secret" not in line


def test_what_stands_behind_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--url", "http://127.0.0.1:9", "--", "--in.jsonl"]) == 1
    assert "--in.jsonl: No such file or directory" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: vigor ")
    assert shown.err.endswith("\nvigor: give a command: score, status, wait, push, scale\n")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"vigor {vigor_client.__version__}\n"


def test_a_wrong_url_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "localhost:8000"]) == 1
    assert "is not a service's URL; give one like http://127.0.0.1:8000" in capsys.readouterr().err


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vigor_client.cli.main", *arguments]
    env = {**preloaded(), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)


def test_url_and_key_come_from_the_environment(fake: CommandLineFake, url: str) -> None:
    done = run("status", VIGOR_URL=url, VIGOR_API_KEY="s3cret")
    assert done.returncode == 0
    assert fake.keys == {"Bearer s3cret"}
    assert "s3cret" not in done.stdout + done.stderr


def test_a_key_file_wins_over_the_environment(fake: CommandLineFake, url: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("from-file\n")
    assert run("status", "--url", url, "--api-key-file", str(key_file), VIGOR_API_KEY="other").returncode == 0
    assert fake.keys == {"Bearer from-file"}


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C as people do it: again if nothing happens; returns what the process said on stderr.

    A signal that comes between Python's own check and the system call that waits is seen after the call.
    """
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=DEADLINE_SECONDS / 6)[1]
    raise AssertionError("the process does not end")


def test_an_interrupt_is_exit_code_130_without_a_trace(fake: CommandLineFake, url: str, tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    def hold(_: httpx.Request) -> httpx.Response:
        asked.set()
        released.wait(DEADLINE_SECONDS)
        return problem(503, "draining")

    fake.instead["GET /v1/weights/tensors"] = hold
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    command = [
        sys.executable,
        "-m",
        "vigor_client.cli.main",
        "push",
        str(tmp_path),
        "--url",
        url,
        "--weight-version",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert asked.wait(DEADLINE_SECONDS)
        errors = interrupt(process)
    released.set()
    assert (process.returncode, errors) == (130, "")


def test_a_reader_that_leaves_ends_the_scoring_quietly(url: str, tmp_path: Path) -> None:
    source = write_groups(tmp_path / "in.jsonl", *[f"q{number}" for number in range(50)])
    command = [sys.executable, "-m", "vigor_client.cli.main", "score", str(source), "--url", url]
    with subprocess.Popen(
        [*command, "--groups-per-request", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(DEADLINE_SECONDS) == 141
    assert errors == ""


def test_scale_asks_for_a_number_of_engines_and_waits_for_them(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "2", "--url", url]) == 0
    assert re.fullmatch(r"engines   2 up, after \d s\n", capsys.readouterr().out)
    assert fake.calls == ["PUT /v1/engines", "GET /v1/engines"]


@pytest.mark.parametrize("number", ["0", "1025", "two"])
def test_scale_refuses_a_number_that_cannot_be(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["scale", number])
    assert "is not a whole number from 1 to 1024" in capsys.readouterr().err
