"""The published weights on disk, from which a restarted service comes back: the last full update and what followed it.

Each update has a directory of its own, ``00000012``, numbered in the order of the commits, with its files as they were
received and a record of what it is. A directory appears under its number in one step, when all of it is on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vigor_client.schemas import WHOLE_ENCODINGS, Checksum, UpdateEncoding, WeightVersion
from vigor_service.errors import StagingFullError, StartupError, WeightBaseMismatchError
from vigor_service.weights.locking import try_lock
from vigor_service.weights.staging import refusing_full_disk

MAX_FOLLOWING = 32
"""After so many deltas and partial updates a full one is asked for: a restart replays them all."""
_RECORD = "update.json"
_FILES = "files"
_INCOMING = "incoming"


class UpdateRecord(BaseModel):
    """What a stored update is: which weights it makes, of which it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight_version: WeightVersion
    weight_digest: Checksum
    base_version: WeightVersion
    base_digest: Checksum
    encoding: UpdateEncoding


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update on the disk, in the directory of that name."""

    name: str
    record: UpdateRecord
    files: Mapping[str, Path]
    num_bytes: int


class DamagedStateError(Exception):
    """The directory holds something else than what was stored; the message names the place."""


class StateDirectory:
    """The state directory of this process alone.

    Raises:
        StartupError: it cannot be used, or another service uses it.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = try_lock(root)
            if lock is None:
                raise StartupError(f"state directory {root}: another service uses it; give each its own")
            shutil.rmtree(root / _INCOMING, ignore_errors=True)
        except OSError as error:
            raise StartupError(f"state directory {root}: {error.strerror}") from error
        self._root = root
        self._lock = lock
        self._last_number = max((int(path.name) for path in self._directories()), default=0)
        self._following_bytes: list[int] = []  # of each update since the last full one

    @property
    def staging_root(self) -> Path:
        """Where updates are received, on the same file system."""
        return self._root / "staging"

    def read(self) -> list[StoredUpdate]:
        """Return what has to be replayed, in order: the last full update, if there is one, and all that followed it.

        Raises:
            DamagedStateError: a record or a file is not there, or cannot be read.
        """
        updates = [_read(path) for path in self._directories()]
        start = max((i for i, update in enumerate(updates) if update.record.encoding in WHOLE_ENCODINGS), default=0)
        self._following_bytes = [
            update.num_bytes for update in updates[start:] if update.record.encoding not in WHOLE_ENCODINGS
        ]
        return updates[start:]

    def require_room_to_follow(self, *, model_bytes: int) -> None:
        """Raise WeightBaseMismatchError where a full update has to come first: a restart replays all since the last."""
        if len(self._following_bytes) >= MAX_FOLLOWING or sum(self._following_bytes) > model_bytes:
            raise WeightBaseMismatchError(
                f"{len(self._following_bytes)} updates follow the last full one in the state directory; "
                "send all weights"
            )

    def store(self, record: UpdateRecord, files: Mapping[str, Path]) -> None:
        """Keep an update that is verified: once this returns, a restart comes back with it. The files stay, too.

        Raises:
            StagingFullError: the disk is full; nothing is stored.
        """
        incoming = self._root / _INCOMING
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            with refusing_full_disk("the update cannot be kept in the state directory"):
                self._write(incoming, record, files)
        except (OSError, StagingFullError):
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        self._last_number += 1
        incoming.rename(self._root / f"{self._last_number:08d}")
        _sync(self._root)
        self._note(record, sum(path.stat().st_size for path in files.values()))

    def close(self) -> None:
        """Let go of the lock; what is stored stays."""
        os.close(self._lock)

    def _write(self, directory: Path, record: UpdateRecord, files: Mapping[str, Path]) -> None:
        (directory / _FILES).mkdir(parents=True)
        for name, path in files.items():
            _sync(path)
            (directory / _FILES / name).hardlink_to(path)
        (directory / _RECORD).write_text(record.model_dump_json(indent=1))
        for path in (directory / _RECORD, directory / _FILES, directory):
            _sync(path)

    def _note(self, record: UpdateRecord, num_bytes: int) -> None:
        if record.encoding not in WHOLE_ENCODINGS:
            self._following_bytes.append(num_bytes)
            return
        self._following_bytes.clear()
        for path in self._directories():
            if int(path.name) < self._last_number:
                shutil.rmtree(path, ignore_errors=True)

    def _directories(self) -> list[Path]:
        return sorted(path for path in self._root.iterdir() if path.name.isdecimal())


def _read(directory: Path) -> StoredUpdate:
    try:
        record = UpdateRecord.model_validate_json((directory / _RECORD).read_bytes())
        files = {path.name: path for path in (directory / _FILES).iterdir()}
        num_bytes = sum(path.stat().st_size for path in files.values())
    except OSError as error:
        raise DamagedStateError(f"{directory.name}: {error.filename}: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        raise DamagedStateError(f"{directory.name}/{_RECORD}: {fault['msg']}") from error
    return StoredUpdate(directory.name, record, files, num_bytes)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
