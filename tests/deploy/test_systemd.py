"""The systemd unit: systemd understands it, it is confined, and its settings are those of the service."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.k8s.rendering import ROOT
from vigor_service.settings import Settings

UNIT = ROOT / "deploy/vigor-service.service"
MAX_EXPOSURE = 20  # of 100, as `systemd-analyze security` weighs what is not confined
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class Section(dict[str, list[str]]):
    """The settings of a section; one that is given twice has two values."""

    def one(self, name: str) -> str:
        """Return the value of a setting that is given once."""
        (value,) = self[name]
        return value


def section(name: str) -> Section:
    text = UNIT.read_text().partition(f"[{name}]\n")[2].partition("\n[")[0]
    found = Section()
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


SERVICE = section("Service")
VARIABLES = dict(value.split("=", 1) for value in SERVICE["Environment"])


def analyze(unit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def installed(directory: Path, **changes: str) -> Path:
    """Return a copy whose program is one of this machine, with parts of its text changed."""
    text = UNIT.read_text().replace(SERVICE.one("ExecStart"), str(shutil.which("true")))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (directory / UNIT.name).write_text(text)
    return directory / UNIT.name


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    verified = analyze(installed(tmp_path), "verify")
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@needs_systemd
def test_a_setting_that_systemd_does_not_know_is_seen(tmp_path: Path) -> None:
    assert "RestartSek" in analyze(installed(tmp_path, RestartSec="RestartSek"), "verify").stderr


@needs_systemd
def test_the_process_is_confined(tmp_path: Path) -> None:
    confined = analyze(installed(tmp_path), "security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    assert confined.returncode == 0, confined.stdout
    open_wide = analyze(
        installed(tmp_path, ProtectSystem="#", CapabilityBoundingSet="#", SystemCallFilter="#"),
        "security",
        "--offline=true",
        f"--threshold={MAX_EXPOSURE}",
    )
    assert open_wide.returncode != 0


def test_it_starts_the_command_of_the_project() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(SERVICE.one("ExecStart")).name in scripts


def test_its_variables_are_settings() -> None:
    own = {name for name in VARIABLES if name != "HOME"}
    assert own <= {f"VIGOR_{name.upper()}" for name in Settings.model_fields}


def test_keys_are_credentials() -> None:
    loaded = dict(value.split(":") for value in SERVICE["LoadCredential"])
    given = {VARIABLES[f"VIGOR_{name}_KEY_FILE"] for name in ("SCORE", "PUBLISH")}
    assert given == {f"%d/{name}" for name in loaded}


def test_the_page_puts_every_file_where_the_unit_reads_it() -> None:
    page = (ROOT / "docs/operations/operating.md").read_text()
    read = [value.split(":")[1] for value in SERVICE["LoadCredential"]] + [SERVICE.one("EnvironmentFile").lstrip("-")]
    assert [path for path in read if f"sudo tee {path}" not in page] == []
    assert f"{Path(SERVICE.one('ExecStart')).parent}/pip install" in page


def test_weights_and_models_lie_in_directories_that_systemd_makes() -> None:
    assert VARIABLES["VIGOR_STATE_DIR"].startswith(f"%S/{SERVICE.one('StateDirectory')}/")
    assert VARIABLES["HOME"] == f"%C/{SERVICE.one('CacheDirectory')}"


def test_it_is_given_the_time_to_drain() -> None:
    assert float(SERVICE.one("TimeoutStopSec")) >= Settings.model_fields["drain_seconds"].default + 15


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert SERVICE.one("Restart") == "on-failure"
    page = (ROOT / "docs/operations/operating.md").read_text()
    assert f"exit code {SERVICE.one('RestartPreventExitStatus')} names a setting" in page
