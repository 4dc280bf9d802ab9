"""The commands that the first pages show, run as they are pasted, with a tiny model in place of the embedded one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.processes import free_port
from tests.support.preloaded_process import preloaded
from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 150.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def test_the_quickstarts_block_waits_for_the_service_that_it_starts(model: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```bash\n(\. \.venv/bin/activate\n.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.S)
    port = free_port()
    script = block.replace(". .venv/bin/activate\n", 'trap "kill %1; wait" EXIT\n').replace("8000", str(port))
    script = script.replace("vigor-service ", f"{sys.executable} -m vigor_service --model {model} ")
    script = re.sub(r"^vigor ", f"{sys.executable} -m vigor_client.cli.main ", script, flags=re.MULTILINE)
    environment = {**preloaded(ENVIRONMENT), "VIGOR_URL": f"http://127.0.0.1:{port}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-e", "-m", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"\nstate     ready\nmodel     {model.name} " in done.stdout


def test_no_page_and_no_program_names_a_package_that_no_index_has() -> None:
    """`vigor-rl` is on no index: it is installed from a checkout, or with the address of a repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if Path(name).suffix in {".md", ".py", ".yaml", ".yml", ".js"}]
    assert len(files) > 100
    wrong = re.compile(r"vigor-rl" + r"\[[^\]]*\](?! @ git\+)|install ['\"]?vigor-rl(?!\[)")
    assert [
        f"{file}: {found[0]}" for file in files if file.exists() for found in wrong.finditer(file.read_text())
    ] == []
