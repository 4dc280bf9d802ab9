"""What a newcomer mistypes or forgets, and the line that each program prints for it before it imports torch."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_hub import fake_hub

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
PROGRAM = """
import sys
from {module} import main
try:
    sys.exit(main())
finally:
    assert "torch" not in sys.modules, "it takes seconds to import"
"""
MODULES = {
    "vigor": "vigor_client.cli.main",
    "vigor-service": "vigor_service.__main__",
    "vigor-trainer": "vigor_trainer.__main__",
}
OLD_PYTHON = """#!/bin/sh
exec {python} -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[2])' "$@"
"""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command line, what it prints, and its exit code. {free} and {taken} are ports, {hub} is the hub's address."""

    command: str
    says: str
    code: int


SERVICE, TRAIN = "vigor-service", "vigor-trainer --reward-url http://127.0.0.1:{free}"
MODEL = "vigor-service: --model (VIGOR_MODEL): "
STOPPED = "vigor-trainer stopped: "
MISTAKES = {
    "the directory of the model is misspelled": Mistake(
        f"{SERVICE} --model ./modle", f"{MODEL}./modle: there is no such file or directory; did you mean model?", 1
    ),
    "the directory of the model is empty": Mistake(
        f"{SERVICE} --model empty",
        f"{MODEL}empty is an empty directory; give one with config.json and *.safetensors files",
        1,
    ),
    "the model has no configuration": Mistake(
        f"{SERVICE} --model weights",
        f"{MODEL}weights has no config.json, so it is no model; give the directory that save_pretrained wrote",
        1,
    ),
    "the directory of a run is given for the model in it": Mistake(
        f"{SERVICE} --model run", f"{MODEL}run has no config.json, so it is no model; did you mean run/model?", 1
    ),
    "a file is given for the model": Mistake(
        f"{SERVICE} --model model/config.json",
        f"{MODEL}model/config.json is a file; give the directory that holds the model, or a .gguf file",
        1,
    ),
    "the hub has no such model": Mistake(
        f"{SERVICE} --model someone/no-such-model",
        f"{MODEL}someone/no-such-model: there is no such model, here or on the hub {{hub}}; if it is private, set "
        "HF_TOKEN",
        1,
    ),
    "another process has the port": Mistake(
        f"{SERVICE} --port {{taken}}",
        "vigor-service: cannot listen on 127.0.0.1 port {taken}: another process listens there; end it, or choose "
        "another port with --port (VIGOR_PORT)",
        1,
    ),
    "the port is not a number": Mistake(
        f"{SERVICE} --port http",
        "vigor-service: --port (VIGOR_PORT) is 'http'; give a whole number",
        2,
    ),
    "an option of the service is misspelled": Mistake(
        f"{SERVICE} --modle model",
        "vigor-service: unknown option --modle; did you mean --model? (see vigor-service --help)",
        2,
    ),
    "a file of a key is not there": Mistake(
        f"{SERVICE} --score-key-file key",
        "vigor-service: --score-key-file (VIGOR_SCORE_KEY_FILE): key cannot be read: No such file or directory",
        2,
    ),
    "the service would be open to other machines": Mistake(
        f"{SERVICE} --host 0.0.0.0",
        "vigor-service: --host 0.0.0.0 (VIGOR_HOST) can be reached from other machines and no key is set: give "
        "--publish-key-file or --score-key-file (VIGOR_PUBLISH_KEY_FILE, VIGOR_SCORE_KEY_FILE), or --allow-anonymous "
        "(VIGOR_ALLOW_ANONYMOUS) if that is intended, or listen on 127.0.0.1",
        2,
    ),
    "the trainer is given nothing": Mistake(
        "vigor-trainer", "vigor-trainer: give --reward-url and --dataset (see vigor-trainer --help)", 2
    ),
    "a command of the trainer is misspelled": Mistake(
        "vigor-trainer evla",
        "vigor-trainer: unknown command evla; did you mean eval? (see vigor-trainer --help)",
        2,
    ),
    "a built-in dataset is misspelled": Mistake(
        f"{TRAIN} --dataset additon",
        f"{STOPPED}--dataset additon: there is no such dataset, here or on the hub {{hub}}; if it is private, set "
        "HF_TOKEN; did you mean addition?",
        2,
    ),
    "a file of questions is misspelled": Mistake(
        f"{TRAIN} --dataset question.jsonl",
        f"{STOPPED}--dataset question.jsonl: there is no such file; did you mean questions.jsonl?",
        2,
    ),
    "held-out questions have another suffix": Mistake(
        f"{TRAIN} --dataset addition --eval-dataset held-out.json",
        f"{STOPPED}--eval_dataset held-out.json: give a .jsonl file, one JSON object per line",
        2,
    ),
    "the model to train is not there": Mistake(
        f"{TRAIN} --dataset addition --model=empty",
        f"{STOPPED}--model empty is an empty directory; give one with config.json and *.safetensors files",
        2,
    ),
    "the URL has no scheme": Mistake(
        "vigor-trainer --reward-url 127.0.0.1:8000 --dataset addition",
        f"{STOPPED}--reward_url, --api_key_file (VIGOR_API_KEY), --score_timeout_seconds: '127.0.0.1:8000' is not a "
        "service's URL; give one like http://127.0.0.1:8000",
        2,
    ),
    "the file of settings is misspelled": Mistake(
        f"{TRAIN} --config trainig.yaml",
        f"{STOPPED}--config trainig.yaml: there is no such file; did you mean training.yaml?",
        2,
    ),
    "the file of settings names a dataset that is not there": Mistake(
        f"{TRAIN} --config training.yaml", f"{STOPPED}--dataset data/gone.jsonl: there is no such file", 2
    ),
    "a command of the client is misspelled": Mistake(
        "vigor statsu", "vigor: unknown command statsu; did you mean status? (see vigor --help)", 2
    ),
    "the checkpoint to push is not there": Mistake(
        "vigor push ./nowhere --weight-version 1",
        "vigor: nowhere does not exist; give the directory of a saved model",
        1,
    ),
    "no service was started": Mistake(
        "vigor status --url http://127.0.0.1:{free}",
        "vigor: cannot reach the service: GET http://127.0.0.1:{free}/readyz: nothing listens there; start a service "
        "with `vigor-service`, or give the URL of another one",
        1,
    ),
    "the directory of a report is not there": Mistake(
        "vigor-trainer report nowhere", f"{STOPPED}nowhere is no directory: give the --output_dir of a run", 2
    ),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of a hub that has no model and no dataset."""
    with fake_hub() as hub:
        yield hub.url


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with what a newcomer has around: models, questions, settings."""
    for model in ("model", "run/model"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.safetensors").touch()
    for name in ("questions.jsonl", "held-out.json"):
        (tmp_path / name).touch()
    (tmp_path / "training.yaml").write_text("dataset: data/gone.jsonl\nmax_steps: 3\n")
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_that_says_what_to_do(mistake: Mistake, files: Path, hub: str, taken_port: int) -> None:
    places = {"hub": hub, "taken": taken_port, "free": 9}
    program, *arguments = mistake.command.format(**places).split()
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=MODULES[program]), *arguments],
        cwd=files,
        env=_environment(HF_ENDPOINT=hub, HF_HOME=str(files / "hub-cache")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.stderr.splitlines() == [mistake.says.format(**places)]
    assert (finished.returncode, finished.stdout) == (mistake.code, "")


def test_an_old_python_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(OLD_PYTHON.format(python=sys.executable))
    old.chmod(0o755)
    made = subprocess.run(
        ["make", "--no-print-directory", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    first, _ = made.stderr.splitlines()
    assert first == (
        f"VIGOR needs python 3.11 or newer, and {old} is 3.9: give another, as in make demo PYTHON=python3.12"
    )
    assert (made.returncode, made.stdout, (tmp_path / "venv").exists()) == (2, "", False)


def test_a_misspelled_variable_is_warned_about_and_the_service_goes_on(files: Path, taken_port: int) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=MODULES["vigor-service"]), "--port", str(taken_port)],
        cwd=files,
        env=_environment(VIGOR_MODLE="model"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    warning, end = finished.stderr.splitlines()
    assert re.search(r"WARNING vigor_service VIGOR_MODLE is not a setting; did you mean VIGOR_MODEL\?$", warning)
    assert "another process listens there" in end


def _environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("VIGOR_", "HF_", "MAKE", "MFLAGS"))
    }
    return kept | changes
