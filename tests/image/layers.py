"""Layers of an image over this machine's own files, by overlay mounts that end with the process that made them.

This machine stands for the base image: Debian, and a python under /usr/local, where the official images have it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEP_SECONDS = 900
# What a build is told about the network that it runs in.
_OF_THE_MACHINE = ("PIP_", "SSL_CERT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def why_not_here() -> str | None:
    """Return why layers cannot be mounted here; None if they can."""
    if os.geteuid() != 0:
        return "mounting layers needs root"
    lacking = [name for name in ("unshare", "mount", "chroot") if shutil.which(name) is None]
    return f"{', '.join(lacking)} not installed" if lacking else None


def in_namespace(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the tests where its mounts are its own."""
    return ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", module, *arguments]


def base_environment() -> dict[str, str]:
    """Return what every process of an image has, before its own variables."""
    of_the_machine = {name: value for name, value in os.environ.items() if name.upper().startswith(_OF_THE_MACHINE)}
    # Where the official images' linker looks for libpython, too.
    return {"PATH": PATH, "LD_LIBRARY_PATH": "/usr/local/lib", **of_the_machine}


def mount_writable(layer: Path) -> Path:
    """Mount a new layer; returns the root. What is written is in ``layer/files`` afterwards."""
    for name in ("files", "work", "root"):
        (layer / name).mkdir(parents=True)
    return _with_base(_mount_layer(layer, "rw"))


def mount_read_only(layer: Path, writable: Mapping[str, Path]) -> Path:
    """Mount a finished layer, in which only these places can be written: each is a directory of this machine."""
    root = _mount_layer(layer, "ro")
    for place, directory in writable.items():
        _mount("--bind", str(directory), str(root / place.lstrip("/")))
    return _with_base(root)


def run(root: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run one step as root in this root directory.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired: it fails, or takes too long.
    """
    subprocess.run(["chroot", root, *command], env=environment, timeout=STEP_SECONDS, check=True)


def _mount_layer(layer: Path, mode: str) -> Path:
    options = f"{mode},lowerdir=/,upperdir={layer / 'files'},workdir={layer / 'work'}"
    _mount("-t", "overlay", "overlay", "-o", options, str(layer / "root"))
    return layer / "root"


def _with_base(root: Path) -> Path:
    _mount("--bind", sys.base_prefix, str(root / "usr/local"))
    for name in ("proc", "dev"):
        _mount("--rbind", f"/{name}", str(root / name))
    return root


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], timeout=STEP_SECONDS, check=True)
