"""docs/tutorial.md, pasted into a shell block after block, in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from examples.processes import free_port
from examples.sums.making import TRAINING
from tests.support.preloaded_process import preloaded
from tests.trainer.running import ENVIRONMENT
from vigor_trainer.monitoring.evaluations import read_evaluations

ROOT = Path(__file__).parents[2]
SMALL = {"max_steps": 2, "eval_every": 2, "num_generations": 4, "per_device_train_batch_size": 8}
PROGRAMS = {"vigor-service": "vigor_service", "vigor-trainer": "vigor_trainer", "vigor": "vigor_client.cli.main"}
LIMIT_SECONDS = 240.0


def commands() -> str:
    """All blocks but the first, which installs; the programs as modules, the service on a port of its own."""
    _, *blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL)
    script = "\n".join(blocks).replace("8000", str(free_port()))
    for program, module in PROGRAMS.items():
        script = re.sub(rf"^( *){program} ", rf"\1{sys.executable} -m {module} ", script, flags=re.MULTILINE)
    return script.replace("python -m examples", f"{sys.executable} -m examples")


def paste(script: str, directory: Path, environment: Mapping[str, str], *, seconds: float) -> str:
    """Run a script in a directory where the repository's examples are; return what it printed."""
    (directory / "examples").symlink_to(ROOT / "examples")
    (port,) = set(re.findall(r"--port (\d+)", script))
    trap = 'trap "kill %1 2> /dev/null || true; wait" EXIT'
    done = subprocess.run(
        ["bash", "-e", "-m", "-c", f"{trap}\n{script}"],
        cwd=directory,
        env={**environment, "VIGOR_URL": f"http://127.0.0.1:{port}", "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_tutorials_commands_run_in_order(tmp_path: Path) -> None:
    settings = {**yaml.safe_load(TRAINING.read_text()), **SMALL}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    script = commands().replace("examples/sums/training.yaml", "small.yaml")
    script = re.sub(r"(-m examples\.sums \S+)", r"\1 --steps 20 --held-out 4", script)
    paste(script, tmp_path, preloaded(ENVIRONMENT), seconds=LIMIT_SECONDS)
    for name in ("slips", "carries"):
        assert json.loads((tmp_path / f"tutorial/audit-{name}/audit.json").read_text())["verdict"]["kind"]
    for run in ("slips-vigor", "slips-random", "carries-vigor"):
        assert [record.step for record in read_evaluations(tmp_path / "tutorial" / run)] == [0, 2]
    assert {page.name for page in (tmp_path / "tutorial").glob("*.html")} == {"slips.html", "both-models.html"}
