"""The built base wheel in a fresh environment: what a user gets from `pip install .`."""

import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("fastapi", "numpy", "safetensors", "torch", "transformers", "trl", "uvicorn", "xxhash")
TIMEOUT_SECONDS = 120

pytestmark = pytest.mark.slow

LOOK_AROUND = f"""
import importlib.util, json, sys
import vigor_client
from vigor_client import VigorClient
import vigor_client.cli.main, vigor_client.models.embedded
print(json.dumps({{
    "version": vigor_client.__version__,
    "file": vigor_client.__file__,
    "imported": [name for name in {HEAVY} if name in sys.modules],
    "installed": [name for name in {HEAVY} if importlib.util.find_spec(name)],
    "client": repr(VigorClient("http://127.0.0.1:8000")),
}}))
"""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def run_well(*command: str | Path, cwd: Path = ROOT) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run_well(sys.executable, "-m", "build", "--wheel", "--outdir", directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the base wheel and its dependencies, and nothing else."""
    directory = tmp_path_factory.mktemp("fresh")
    venv.create(directory, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", directory / "bin/python", "install", "--quiet"]
    run_well(*pip, wheel, cwd=directory)
    return directory / "bin"


def test_the_wheel_holds_the_three_packages_typed_and_licensed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("vigor_client", "vigor_service", "vigor_trainer"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "vigor_client",
        "vigor_rl",
        "vigor_service",
        "vigor_trainer",
    }
    assert {f"vigor_service/inspector/{name}" for name in ("index.html", "style.css", "inspector.js")} <= names
    assert {f"vigor_trainer/reports/page/{name}" for name in ("index.html", "style.css", "report.js")} <= names
    assert {f"vigor_trainer/recipes/{name}.yaml" for name in ("_default", "vigor-3b-math", "tiny")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_base_install_imports_the_client_without_anything_heavy(fresh: Path, tmp_path: Path) -> None:
    found = json.loads(run_well(fresh / "python", "-W", "error", "-c", LOOK_AROUND, cwd=tmp_path))
    assert found["installed"] == []
    assert found["imported"] == []
    assert found["client"] == "VigorClient('http://127.0.0.1:8000')"
    assert str(fresh.parent) in found["file"]


def test_the_command_line_explains_itself(fresh: Path, tmp_path: Path) -> None:
    shown = run_well(fresh / "vigor", "--help", cwd=tmp_path)
    assert all(command in shown for command in ("score", "status", "wait", "push"))


def test_pushing_without_xxhash_says_which_extra_to_install(fresh: Path, tmp_path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    done = run(fresh / "vigor", "push", tmp_path, "--weight-version", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("vigor: a checksum needs xxhash: pip install '.[trainer]' in a checkout")


@pytest.mark.parametrize(
    ("script", "flags", "extra"),
    [("vigor-service", ["--help"], "service"), ("vigor-trainer", ["--dataset", "addition"], "trainer")],
)
def test_the_other_commands_say_which_extra_to_install(
    script: str, flags: Sequence[str], extra: str, fresh: Path, tmp_path: Path
) -> None:
    done = run(fresh / script, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install '.[{extra}]' in a checkout of vigor-rl" in done.stderr
    assert "Traceback" not in done.stderr
