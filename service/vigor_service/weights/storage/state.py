"""The published weights on disk, for a restart: the last full update and the updates that followed it.

Each update has its own directory, such as ``00000012``, numbered in the order of the commits. It has the files as they
were received, and a record that describes the update. A directory gets its number by one rename after all of it is on
the disk, and loses it by one rename before anything in it is removed. So a numbered directory is always complete, even
if the process was killed.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vigor_client.schemas.common import Checksum, WeightVersion
from vigor_client.schemas.weights import WHOLE_ENCODINGS, UpdateEncoding
from vigor_service.errors import StagingFullError, StartupError, WeightBaseMismatchError
from vigor_service.weights.storage.file_lock import try_lock
from vigor_service.weights.storage.plain_files import UnusableFileError, num_bytes_of_plain, read_plain
from vigor_service.weights.storage.removal import remove
from vigor_service.weights.storage.staging import refusing_full_disk

_logger = logging.getLogger(__name__)

MAX_FOLLOWING = 32
"""Maximum number of deltas and partial updates after a full one. Then a full one is required, because a restart replays
them all."""
_RECORD = "update.json"
_FILES = "files"
_INCOMING = "incoming"
_OUTGOING = "outgoing-"
_NUMBER = re.compile(r"[0-9]{8,}")
_MAX_RECORD_BYTES = 1 << 16


class UpdateRecord(BaseModel):
    """The weights that a stored update results in, and its base weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight_version: WeightVersion
    weight_digest: Checksum
    base_version: WeightVersion
    base_digest: Checksum
    encoding: UpdateEncoding


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update on the disk, in the directory with this name."""

    name: str
    record: UpdateRecord
    files: Mapping[str, Path]
    num_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether the update needs no earlier update."""
        return self.record.encoding in WHOLE_ENCODINGS


class DamagedStateError(Exception):
    """The directory does not contain what was stored; the message names the place."""


class StateDirectory:
    """The state directory, locked for this process.

    Raises:
        StartupError: the directory cannot be used, or another service uses it.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = try_lock(root)
            if lock is None:
                raise StartupError(f"state directory {root}: another service uses it; give each its own")
            self._root = root
            self._lock = lock
            self._remove_leftovers()
        except OSError as error:
            raise StartupError(f"state directory {root}: {error.strerror}") from error
        self._last_number = max(map(_number, self._directories()), default=0)
        self._last_digest: str | None = None  # of the weights that a restart restores; None if none
        self._following_bytes: list[int] = []  # sizes of the updates since the last full one

    @property
    def staging_root(self) -> Path:
        """Directory in which updates are received, on the same file system."""
        return self._root / "staging"

    def read(self) -> list[StoredUpdate]:
        """Return the updates to replay, in order: the last full update, if there is one, and all that followed it.

        Older updates are removed, because the process may have been killed before it removed them.

        Raises:
            DamagedStateError: a record or a file is missing, is not plain, or cannot be read.
        """
        updates: list[StoredUpdate] = []
        for path in reversed(self._directories()):
            updates.append(_read(path))
            if updates[-1].is_whole:
                self._remove_before(_number(path))
                break
        updates.reverse()
        self._following_bytes = [update.num_bytes for update in updates if not update.is_whole]
        self._last_digest = updates[-1].record.weight_digest if updates else None
        return updates

    def require_room_to_follow(self, base_digest: str, *, model_bytes: int) -> None:
        """Raise WeightBaseMismatchError if the next update must be a full one.

        A restart replays all updates since the last full one, so their number and total size are limited.
        """
        if len(self._following_bytes) >= MAX_FOLLOWING or sum(self._following_bytes) > model_bytes:
            raise WeightBaseMismatchError(
                f"{len(self._following_bytes)} updates since the last full one are in the state directory: "
                "send a full update"
            )
        self._require_stored(base_digest)

    def _require_stored(self, base_digest: str) -> None:
        """Raise WeightBaseMismatchError if the last stored weights are not the base.

        They may differ from the served weights after storing failed or took too long.
        """
        if self._last_digest not in (None, base_digest):
            raise WeightBaseMismatchError(
                f"the state directory has weights {self._last_digest} last, not {base_digest}: send a full update",
                have=self._last_digest,
                want=base_digest,
            )

    def store(self, record: UpdateRecord, files: Mapping[str, Path]) -> None:
        """Store a verified update. Once this returns, a restart restores it. The given files also stay in place.

        Raises:
            StagingFullError: the disk is full; nothing is stored.
            WeightBaseMismatchError: the update does not follow the last stored one; nothing is stored.
        """
        if record.encoding not in WHOLE_ENCODINGS:
            self._require_stored(record.base_digest)
        incoming = self._root / _INCOMING
        remove(incoming)
        try:
            with refusing_full_disk("the update does not fit into the state directory"):
                self._write(incoming, record, files)
        except (OSError, StagingFullError):
            remove(incoming)
            raise
        self._last_number += 1
        self._last_digest = record.weight_digest  # set before the rename: after an error the update may be stored
        incoming.rename(self._root / f"{self._last_number:08d}")
        _sync(self._root)
        self._note(record, sum(path.stat().st_size for path in files.values()))

    def close(self) -> None:
        """Release the lock. The stored updates stay."""
        self._lock.release()

    def _write(self, directory: Path, record: UpdateRecord, files: Mapping[str, Path]) -> None:
        (directory / _FILES).mkdir(parents=True)
        for name, path in files.items():
            _sync(path)
            (directory / _FILES / name).hardlink_to(path)
        (directory / _RECORD).write_text(record.model_dump_json(indent=1))
        for path in (directory / _RECORD, directory / _FILES, directory):
            _sync(path)

    def _note(self, record: UpdateRecord, num_bytes: int) -> None:
        if record.encoding in WHOLE_ENCODINGS:
            self._following_bytes.clear()
            self._remove_before(self._last_number)
        else:
            self._following_bytes.append(num_bytes)

    def _remove_before(self, number: int) -> None:
        """Remove updates that a restart no longer needs. If that fails, the rest only costs disk space."""
        try:
            outgoing = [self._without_number(path) for path in self._directories() if _number(path) < number]
            _sync(self._root)  # else a half-removed update might have its number again after a power loss
        except OSError as error:
            _logger.warning("not_removed", extra={"path": self._root, "before": number, "reason": error.strerror})
            return
        for path in outgoing:
            remove(path)

    def _without_number(self, path: Path) -> Path:
        return path.rename(self._root / f"{_OUTGOING}{secrets.token_hex(8)}")

    def _remove_leftovers(self) -> None:
        """Remove directories that a process was writing or removing when it was killed."""
        for path in self._root.iterdir():
            if path.name == _INCOMING or path.name.startswith(_OUTGOING):
                remove(path)

    def _directories(self) -> list[Path]:
        return sorted((path for path in self._root.iterdir() if _NUMBER.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name)


def _read(directory: Path) -> StoredUpdate:
    _require_directory(directory, directory.name)
    _require_directory(directory / _FILES, f"{directory.name}/{_FILES}")
    record = _read_record(directory / _RECORD, f"{directory.name}/{_RECORD}")
    files = {path.name: path for path in (directory / _FILES).iterdir()}
    num_bytes = sum(_num_bytes(path, f"{directory.name}/{_FILES}/{path.name}") for path in files.values())
    return StoredUpdate(directory.name, record, files, num_bytes)


def _read_record(path: Path, place: str) -> UpdateRecord:
    try:
        return UpdateRecord.model_validate_json(read_plain(path, max_bytes=_MAX_RECORD_BYTES))
    except UnusableFileError as error:
        raise DamagedStateError(f"{place} {error}") from error
    except ValidationError as error:
        raise DamagedStateError(f"{place}: {error.errors()[0]['msg']}") from error


def _num_bytes(path: Path, place: str) -> int:
    try:
        return num_bytes_of_plain(path)
    except UnusableFileError as error:
        raise DamagedStateError(f"{place} {error}") from error


def _require_directory(path: Path, place: str) -> None:
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except OSError as error:
        raise DamagedStateError(f"{place} cannot be read: {error.strerror}") from error
    if not is_directory:
        raise DamagedStateError(f"{place} is not a directory")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
