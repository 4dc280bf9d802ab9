"""``vigor push``: how far it is, on a terminal and in a log, and what it says of what it cannot use."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
import torch
from safetensors.torch import save_file

from tests.client.cli.command_line_fake import DEADLINE_SECONDS, CommandLineFake, shown_on_a_terminal
from tests.client.fake_service import problem
from tests.support.live_service import live_service
from tests.support.preloaded_process import preloaded
from vigor_client.cli.main import main
from vigor_client.cli.progress import PushProgress
from vigor_client.publishing.progress import PublishProgress

NUM_VALUES = 1 << 21
MB = "8.4 MB"


@pytest.fixture
def checkpoint(fake: CommandLineFake, tmp_path: Path) -> Path:
    """A checkpoint of other values than the fake serves."""
    fake.tensors = {"a": torch.zeros(NUM_VALUES)}
    save_file({"a": torch.ones(NUM_VALUES)}, tmp_path / "model.safetensors")
    return tmp_path


def push(checkpoint: Path, url: str, *options: str) -> list[str]:
    return ["push", str(checkpoint), "--weight-version", "5", "--url", url, *options]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vigor_client.cli.main", *arguments]
    return subprocess.run(
        command, env=preloaded(), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


def test_a_terminal_shows_phases_bytes_rate_and_time_left_in_one_line(checkpoint: Path, url: str) -> None:
    shown = shown_on_a_terminal(*push(checkpoint, url))
    texts = [text.strip() for text in shown.split("\r")]
    assert texts[0] == ""
    assert texts[1:3] == ["comparing", f"hashing {MB}"]
    assert f"sending {MB}" in texts
    assert texts[-2] == "verifying"
    assert shown.endswith("\r\n")
    assert shown.count("\n") == 1
    finished = [text for text in texts if text.startswith("sending 8.4 of 8.4 MB, ")]
    assert re.fullmatch(r"sending 8\.4 of 8\.4 MB, [\d,.]+ MB/s, 0:00:00 left", finished[-1])


def test_a_log_has_a_line_for_each_phase(checkpoint: Path, url: str) -> None:
    done = run(push(checkpoint, url))
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "vigor: comparing",
        f"vigor: hashing {MB}",
        f"vigor: sending {MB}",
        "vigor: verifying",
    ]
    assert re.fullmatch(
        r"published version 5, xxh3-128:[0-9a-f]{32}: 1 tensors changed, 8\.4 MB in [\d.]+ s, sent at [\d,.]+ MB/s\n",
        done.stdout,
    )


def test_who_wants_quiet_sees_nothing(checkpoint: Path, url: str) -> None:
    assert shown_on_a_terminal(*push(checkpoint, url, "--quiet")) == ""
    assert run(push(checkpoint, url, "--quiet")).stderr == ""


def test_a_real_service_is_pushed_to_with_and_without_a_terminal(tmp_path: Path) -> None:
    with live_service(tmp_path / "staging") as service:
        url = str(service.http.base_url)
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir()
        save_file(
            {name: tensor + 1 for name, tensor in service.scorer.parameters.items()}, checkpoint / "model.safetensors"
        )
        shown = shown_on_a_terminal("push", str(checkpoint), "--weight-version", "1", "--url", url)
        assert [text.split()[0] for text in shown.split("\r") if text.strip()][-1] == "verifying"
        save_file(
            {name: tensor - 1 for name, tensor in service.scorer.parameters.items()}, checkpoint / "model.safetensors"
        )
        done = run(["push", str(checkpoint), "--weight-version", "2", "--url", url])
        phases = [line.split()[1] for line in done.stderr.splitlines()]
        assert (done.returncode, phases) == (0, ["comparing", "hashing", "sending", "verifying"])
        assert service.http.get("/v1/weights").json()["weight_version"] == 2


def shown(times: list[float], told: list[PublishProgress], *, is_terminal: bool) -> str:
    """What is written for these reports, which come at these seconds."""
    stream = io.StringIO()
    clock = iter([0.0, *times])
    progress = PushProgress(stream, is_terminal=is_terminal, prefix="vigor:", clock_seconds=lambda: next(clock))
    for each in told:
        progress.show(each)
    progress.close()
    return stream.getvalue()


SENDING = [PublishProgress("sending", done * 10**6, 100 * 10**6) for done in (0, 10, 20, 60, 100)]


def test_a_log_has_at_most_a_line_in_ten_seconds() -> None:
    assert shown([0.0, 5.0, 10.0, 15.0, 25.0], SENDING, is_terminal=False).splitlines() == [
        "vigor: sending 100.0 MB",
        "vigor: sending 20.0 of 100.0 MB, 2.0 MB/s, 0:00:40 left",
        "vigor: sending 100.0 of 100.0 MB, 4.0 MB/s, 0:00:00 left",
    ]


def test_a_terminal_is_written_at_most_five_times_a_second_and_at_the_end() -> None:
    assert shown([0.0, 0.1, 0.5, 0.6, 0.61], SENDING, is_terminal=True).split("\r")[1:] == [
        "sending 100.0 MB",
        "sending 20.0 of 100.0 MB, 40.0 MB/s, 0:00:02 left",
        "sending 100.0 of 100.0 MB, 163.9 MB/s, 0:00:00 left\n",
    ]


def test_an_error_stands_on_a_line_of_its_own(checkpoint: Path, fake: CommandLineFake, url: str) -> None:
    fake.instead["PUT /v1/weights/updates"] = lambda _: problem(507, "staging_full")
    done = run(push(checkpoint, url))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vigor: the fake says staging_full (507 staging_full")


def missing(directory: Path) -> Path:
    return directory / "nothing"


def empty(directory: Path) -> Path:
    return directory


def without_safetensors(directory: Path) -> Path:
    (directory / "pytorch_model.bin").write_bytes(b"x")
    return directory


def a_file(directory: Path) -> Path:
    path = directory / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    return path


def damaged(directory: Path) -> Path:
    (directory / "model.safetensors").write_bytes(b"\1" * 100)
    return directory


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (missing, "{} does not exist; give the directory of a saved model"),
        (empty, "{} is empty; give the directory of a model that was saved as safetensors"),
        (
            without_safetensors,
            "{} holds neither model.safetensors nor model.safetensors.index.json; give the directory",
        ),
        (a_file, "{} is not a directory; give the directory of a saved model"),
        (damaged, "{}/model.safetensors cannot be read: "),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_one_line_and_needs_no_service(
    prepare: Callable[[Path], Path], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepare(tmp_path)
    started_seconds = monotonic()
    assert main(push(path, "http://127.0.0.1:9")) == 1
    assert monotonic() - started_seconds < 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor: " + said.format(path))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "http://127.0.0.1:9",
            "GET http://127.0.0.1:9/readyz: nothing listens there; start a service with `vigor-service`",
        ),
        ("http://no-such-host.invalid", "GET http://no-such-host.invalid/readyz: the name of the host has no address"),
        ("ftp://127.0.0.1", "'ftp://127.0.0.1' is not a service's URL; give one like http://127.0.0.1:8000"),
        ("127.0.0.1:8000", "'127.0.0.1:8000' is not a service's URL; give one like http://127.0.0.1:8000"),
        ("http://127.0.0.1:99999", "'http://127.0.0.1:99999' is not a service's URL; give one like"),
        ("http://user:s3cret@127.0.0.1", "the URL holds a user name or a password; give the key as api_key instead"),
    ],
)
@pytest.mark.parametrize("command", ["status", "push"])
def test_a_service_that_is_not_there_is_one_line(
    command: str, url: str, said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [] if command == "status" else [str(checkpoint), "--weight-version", "1", "--ready-timeout-seconds", "0"]
    assert main([command, *options, "--url", url]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor: ")
    assert said in line
    assert "s3cret" not in line


def test_a_wrong_key_is_one_line_that_says_how_to_give_another(
    fake: CommandLineFake, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.instead["GET /v1/weights"] = lambda _: problem(401, "unauthenticated")
    assert main(["status", "--url", url]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; give the key by --api-key-file or VIGOR_API_KEY")
