"""Reads directories under --weights-root: checkpoints, and versions as slime publishes them.

A version is a directory such as ``weight_v000012``. It has all weights, or the changes since the version that its index
names. Only plain files under the root are opened, and a bounded number of bytes of an index is read.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from vigor_client.errors import CheckpointError
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import MAX_UPDATE_FILES, FileName, UpdateFile
from vigor_client.weight_format.checkpoint_files import checkpoint_files
from vigor_client.weight_format.delta_index import INDEX_NAME, MAX_INDEX_BYTES, DeltaIndex, is_index_of_delta
from vigor_service.errors import InvalidRequestError, invalid_request
from vigor_service.weights.storage.plain_files import UnusableFileError, open_plain, read_plain
from vigor_service.weights.updates.staged_file import describe_file

MAX_VERSIONS = 1024
"""Maximum number of versions from a full one to the target; more are refused."""

_FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One published directory. Without a base it has all weights; else the changes since the base."""

    number: int
    files: Mapping[str, Path]
    base_number: int | None = None


class PublishedVersions:
    """The published directories under ``root``, a resolved path. Methods block while they wait for the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def inside(self, directory: str, field: str) -> Path:
        """Return a directory under the root as a resolved path. ``field`` is the request's field that names it.

        Raises:
            InvalidRequestError: there is no such directory under the root.
        """
        path = _resolved(self._root / directory)
        if path is None or not path.is_relative_to(self._root):
            raise refuse(f"{directory[:200]!r} is not a directory under the service's --weights-root", field)
        return path

    def checkpoint(self, directory: str, number: int, field: str) -> PublishedVersion:
        """Return the files that transformers would load from a directory under the root.

        Raises:
            InvalidRequestError: there is no such directory, or it is not a checkpoint.
        """
        return PublishedVersion(number, self._checkpoint(self.inside(directory, field), field))

    def leading_to(self, directory: Path, target: int, served: int | None) -> list[PublishedVersion]:
        """Return the versions that lead to the target, in order, starting at a full one or after the served one.

        Raises:
            InvalidRequestError: a version is missing or damaged, or there are too many.
        """
        versions: list[PublishedVersion] = []
        number: int | None = target
        while number is not None and number != served:
            if len(versions) == MAX_VERSIONS:
                raise refuse(
                    f"more than {MAX_VERSIONS} deltas lead to version {target}: publish a full version",
                    "target_version",
                )
            versions.append(self._read(directory, number))
            number = versions[-1].base_number
        return versions[::-1]

    def open(self, path: Path) -> BinaryIO:
        """Open a file of a version.

        Raises:
            InvalidRequestError: the file cannot be read, is not plain, or is outside the root.
        """
        try:
            return open_plain(path, root=self._root)
        except UnusableFileError as error:
            raise refuse(str(error), path.parent.name, path.name) from error

    def announce(self, name: str, path: Path) -> Generator[None, None, UpdateFile]:
        """Return the announcement of a file, which is read in steps of one buffer.

        Raises:
            InvalidRequestError: as `open`, or the file is empty.
        """
        with self.open(path) as file:
            try:
                return (yield from describe_file(name, file))
            except ValidationError as error:
                raise refuse("is empty", path.parent.name, name) from error

    def _read(self, directory: Path, number: int) -> PublishedVersion:
        path = directory / f"weight_v{number:06d}"
        if not path.is_dir():
            raise refuse(f"{path.name} does not exist", "source_dir")
        data = self._index(path)
        if data is None or not is_index_of_delta(data):
            return PublishedVersion(number, self._checkpoint(path, path.name))
        try:
            index = DeltaIndex.model_validate_json(data)
        except ValidationError as error:
            raise _refuse_all(error, path.name, INDEX_NAME) from error
        declared, base = int(index.metadata.version), int(index.metadata.base_version)
        if declared != number or base >= number:
            raise refuse(f"is a delta from version {base} to {declared}, not to {number}", path.name, INDEX_NAME)
        return PublishedVersion(number, _named(path, [INDEX_NAME, *index.file_names]), base)

    def _index(self, directory: Path) -> bytes | None:
        if not os.path.lexists(directory / INDEX_NAME):
            return None
        try:
            return read_plain(directory / INDEX_NAME, max_bytes=MAX_INDEX_BYTES, root=self._root)
        except UnusableFileError as error:
            raise refuse(str(error), directory.name, INDEX_NAME) from error

    def _checkpoint(self, directory: Path, place: str) -> Mapping[str, Path]:
        try:
            files = checkpoint_files(directory, open_file=lambda path: open_plain(path, root=self._root))
        except CheckpointError as error:
            raise refuse(str(error), place) from error
        return _named(directory, [path.name for path in files])


def _named(directory: Path, names: Iterable[str]) -> Mapping[str, Path]:
    """Return the path of each name, if these names are allowed for the files of an update."""
    files = {name: directory / name for name in names}
    if len(files) > MAX_UPDATE_FILES:
        raise refuse(f"has {len(files)} files; an update has at most {MAX_UPDATE_FILES}", directory.name)
    for name in files:
        try:
            _FILE_NAME.validate_python(name)
        except ValidationError as error:
            raise refuse(
                f"is not a file name that an update may have: {error.errors()[0]['msg']}", directory.name, name[:200]
            ) from error
    return files


def _resolved(path: Path) -> Path | None:
    """Return the resolved path of a directory, or None if there is no such directory."""
    try:
        resolved = path.resolve(strict=True)
        return resolved if resolved.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long or invalid names, or links in a circle
        return None


def _refuse_all(error: ValidationError, *place: str) -> InvalidRequestError:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return invalid_request(
        [FieldError(loc=[*place, *fault["loc"]], msg=fault["msg"]) for fault in faults],
        consequence=_NOTHING_APPLIED,
    )


_NOTHING_APPLIED = "nothing was applied"


def refuse(message: str, *place: str) -> InvalidRequestError:
    """Return an error with this message and place, which says that nothing was applied."""
    return invalid_request([FieldError(loc=list(place), msg=message)], consequence=_NOTHING_APPLIED)
