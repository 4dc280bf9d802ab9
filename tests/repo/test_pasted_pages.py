"""README, quickstart and tutorial, pasted block after block into one shell of a fresh clone, as a newcomer does it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from vigor_trainer.monitoring.evaluations import read_evaluations

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/tutorial.md")
LEFT_OUT = "make test   # the tests\n"  # these tests are among them
END_WHAT_WAS_STARTED = "trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT"
PORT = 8000  # that of the pages
LIMIT_SECONDS = 3600
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_SECONDS + 60)]


@dataclass(frozen=True, slots=True)
class Block:
    """What a page has to paste, and where it stands."""

    place: str
    script: str


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks_of(page)]


def _blocks_of(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{page}:{line}", _pasted(found[1], found[2]))


def _pasted(language: str, content: str) -> str:
    content = content.replace(LEFT_OUT, "")
    return f"python - <<'END_OF_BLOCK'\n{content}END_OF_BLOCK\n" if language == "python" else content


def test_every_command_of_the_first_pages_works_the_first_time(tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"another process listens on port {PORT}, which the pages use")
    assert LEFT_OUT in (ROOT / "README.md").read_text()
    clone, times, log = tmp_path / "vigor-rl", tmp_path / "times", tmp_path / "log"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    lines = [f"echo '{block.place}' $SECONDS >> {times}\n{block.script}" for block in blocks()]
    script = "\n".join([END_WHAT_WAS_STARTED, *lines, f"echo end $SECONDS >> {times}"])
    with log.open("wb") as output:
        done = subprocess.run(
            ["bash", "-e", "-m", "-c", script],
            cwd=clone,
            env=_environment(VIGOR_CACHE_DIR=str(tmp_path / "cache")),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    began = [line.rsplit(" ", 1) for line in times.read_text().splitlines()]
    assert done.returncode == 0, f"{began[-1][0]}\n{log.read_text()[-4000:]}"
    for (place, begin), (_, end) in pairwise(began):
        print(f"{place:24} {int(end) - int(begin):5} s")
    _check_tutorial(clone / "tutorial")


def _check_tutorial(directory: Path) -> None:
    """The audits and the runs end as the page says."""
    verdicts = [
        json.loads((directory / f"audit-{name}/audit.json").read_text())["verdict"]["kind"]
        for name in ("slips", "carries")
    ]
    assert verdicts == ["aligned", "opposed"]
    changes = {name: _change(directory / name) for name in ("slips-vigor", "slips-random", "carries-vigor")}
    assert changes["slips-vigor"] > max(0, changes["slips-random"])
    assert changes["carries-vigor"] < 0


def _change(run: Path) -> float:
    """Sampled accuracy on held-out questions after training, minus before."""
    first, *_, last = (record.metrics["sampled"]["accuracy"]["value"] for record in read_evaluations(run))
    return last - first


def _environment(**changes: str) -> dict[str, str]:
    """Return an environment without what the tests themselves are started with."""
    own = ("VIGOR_", "MAKE", "MFLAGS", "PYTEST_", "COV_", "VIRTUAL_ENV", "OMP_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | changes
