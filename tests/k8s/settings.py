"""What a pod of the service is told, as the service itself reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import CliApp

from tests.k8s.rendering import Manifest, container, front, the
from vigor_service.settings import Settings

KEYS = {"VIGOR_SCORE_KEY_FILE": "key-that-scores", "VIGOR_PUBLISH_KEY_FILE": "key-that-publishes"}


def environment(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the variables that the pod gets from its ConfigMap."""
    (source,) = container(front(manifests))["envFrom"]
    return the(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]


def mounted(manifests: Sequence[Manifest], directory: Path) -> dict[str, str]:
    """Return the variables, with a directory for what the pod mounts: the keys are files in it, and so is the state."""
    for name, key in KEYS.items():
        (directory / name).write_text(f"{key}\n")
    files = {name: str(directory / name) for name in KEYS}
    return {**environment(manifests), **files, "VIGOR_STATE_DIR": str(directory / "state")}


def flags(manifests: Sequence[Manifest], directory: Path) -> list[str]:
    """Return the variables as flags, of which the service refuses those that it does not know."""
    given = mounted(manifests, directory)
    return [f"--{name.removeprefix('VIGOR_').lower().replace('_', '-')}={value}" for name, value in given.items()]


def settings_of(manifests: Sequence[Manifest], directory: Path) -> Settings:
    """Return the pod's settings."""
    return CliApp.run(Settings, cli_args=flags(manifests, directory))
