"""The Dockerfile's steps, run here: the image serves as its own user, with nothing but its volumes to write to."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.image.build import FINAL
from tests.image.dockerfile import DOCKERFILE, ROOT, Stage, read_stages
from tests.image.layers import in_namespace, why_not_here
from tests.image.start import WRITABLE, writable
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here())),
]
BUILD_SECONDS = 1500
READY_SECONDS = 300.0
STOP_SECONDS = 60.0
GROUP = {
    "messages": [{"role": "user", "content": "What is 3 + 4?"}],
    "completions": [{"text": text, "finish_reason": "stop"} for text in ("3 + 4 = 7.", "The answer is 8.")],
}


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, built for a CPU with the torch that `make setup` installs here."""
    directory = tmp_path_factory.mktemp("image")
    torch = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert torch
    argument = f"TORCH={os.environ.get('TORCH', torch[1])}"
    log = directory / "build.log"
    with log.open("wb") as output:
        command = in_namespace("tests.image.build", str(directory), argument)
        done = subprocess.run(command, stdout=output, stderr=output, cwd=ROOT, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, log.read_text()[-5000:]
    for place in WRITABLE:
        writable(directory / FINAL, place).mkdir(parents=True)
        os.chown(writable(directory / FINAL, place), *user())
    return directory / FINAL


def final() -> Stage:
    return read_stages(DOCKERFILE.read_text())[-1]


def user() -> tuple[int, int]:
    uid, _, gid = final().all("USER")[0].rest.partition(":")
    return int(uid), int(gid)


@contextmanager
def started(layer: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the entrypoint, as `docker run --read-only` does with a volume for each writable place."""
    environment = {**os.environ, "VIGOR_HOST": "127.0.0.1", "VIGOR_PORT": str(port)}
    command = in_namespace("tests.image.start", str(layer), *final().command("ENTRYPOINT"))
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


def is_healthy(layer: Path, port: int) -> bool:
    """Ask as docker does: with the image's own command, in the image."""
    command = in_namespace("tests.image.start", str(layer), *final().command("HEALTHCHECK"))
    environment = {**os.environ, "VIGOR_PORT": str(port)}
    return (
        subprocess.run(command, env=environment, cwd=ROOT, timeout=60, capture_output=True, check=False).returncode == 0
    )


def test_the_image_scores_with_its_default_model_and_ends_when_it_is_told_to(layer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert not is_healthy(layer, port)
    with started(layer, port) as process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        wait_until(lambda: _is_ready(http) or process.poll() is not None, deadline_seconds=READY_SECONDS)
        answer = http.post("/v1/score", json={"groups": [GROUP]})
        assert answer.status_code == 200, answer.text
        assert [score["rank"] for score in answer.json()["groups"][0]["completions"]] == [1, 2]
        assert is_healthy(layer, port)
        process.send_signal(getattr(signal, final().all("STOPSIGNAL")[0].rest))
        assert process.wait(STOP_SECONDS) == 0


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.ConnectError:
        return False


def test_the_image_adds_an_environment_and_a_user_and_nothing_of_the_build(layer: Path) -> None:
    assert {path.name for path in (layer / "files").iterdir()} == {"etc", "opt", "var"}
    assert {path.name for path in (layer / "files/opt").iterdir()} == {"vigor"}
    installed = {path.name for path in (layer / "files/opt/vigor/lib/python3.11/site-packages").iterdir()}
    assert {"vigor_client", "vigor_service", "vigor_trainer", "torch"} <= installed
    assert not {"hatchling", "pytest", "trl"} & installed
