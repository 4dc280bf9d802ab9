"""Updates whose files this machine can read already: whole checkpoints, and versions as slime publishes them.

A version is a directory ``weight_v000012``, with all weights or with what changed since the version that its index
names. Files are copied before they are verified, so that whoever wrote them may go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vigor_client.checkpoints import checkpoint_files
from vigor_client.delta_index import INDEX_NAME, DeltaIndex, is_index_of_delta
from vigor_client.errors import CheckpointError
from vigor_client.schemas import CommitResponse, FieldError, UpdateFile, UpdateRequest, UpdateStatus
from vigor_service.errors import InvalidRequestError, ServiceError, WeightBaseMismatchError, invalid_request
from vigor_service.weights.publication import Publication
from vigor_service.weights.receiving import BUFFER_BYTES, describe_file
from vigor_service.weights.updates import Updates
from vigor_service.weights.weights import Weights

_NOTHING_APPLIED = "nothing was applied"


@dataclass(frozen=True, slots=True)
class _Version:
    """One published directory; without a base it has all weights."""

    number: int
    files: Mapping[str, Path]
    base_number: int | None = None


class LocalFiles:
    """Takes updates from directories under ``root``; None: from nowhere."""

    def __init__(self, updates: Updates, publication: Publication, *, root: Path | None) -> None:
        self._updates = updates
        self._publication = publication
        self._root = None if root is None else root.resolve()
        self._pulled: tuple[Path, str] | None = None  # from where what serves was pulled, and its digest

    async def take(self, update_id: str, directory: str) -> UpdateStatus:
        """Take what an open update lacks from a directory, which is emptied of it.

        Raises:
            InvalidRequestError: the directory is not under the root, or as `Updates.take`.
            ServiceError: as `Updates.take`.
        """
        return await self._updates.take(update_id, self._inside(directory, "directory"))

    async def load(self, directory: str, weight_version: int) -> CommitResponse:
        """Serve the weights of a checkpoint's directory.

        Raises:
            InvalidRequestError: the directory is not under the root, is no checkpoint, or is refused as an update.
            ServiceError: as an update that is sent.
        """
        path = self._inside(directory, "model_path")
        return await self._commit(await asyncio.to_thread(_checkpoint, path, "model_path"), weight_version)

    async def pull(self, source: str, target: int) -> Weights:
        """Serve a version of a directory of versions: by the changes since what is served, or from the newest full one.

        Raises:
            InvalidRequestError: a directory is missing, damaged, or not under the root.
            WeightBaseMismatchError: the version is older than the one that was pulled from there.
            ServiceError: as an update that is sent; versions before the one that failed are served.
        """
        directory = self._inside(source, "source_dir")
        for version in await asyncio.to_thread(self._missing_versions, directory, target):
            base = None if version.base_number is None else self._publication.weights
            await self._commit(version.files, version.number, base)
            self._pulled = directory, self._publication.weights.digest
        return self._publication.weights

    def _missing_versions(self, directory: Path, target: int) -> list[_Version]:
        """Return what leads to the target, first things first."""
        served = self._publication.weights
        follows = self._pulled == (directory, served.digest) and self._publication.state == "ready"
        if follows and target < served.version:
            raise WeightBaseMismatchError(
                f"version {target} is out of order: {served.version} was pulled from there already",
                have=served.version,
                want=target,
            )
        versions: list[_Version] = []
        number: int | None = target
        while number is not None and not (follows and number == served.version):
            versions.append(_read_version(directory, number))
            number = versions[-1].base_number
        return versions[::-1]

    def _inside(self, directory: str, field: str) -> Path:
        if self._root is None:
            raise _refuse("the service takes no files of its own machine: start it with --weights-root", field)
        path = _directory_under(self._root, directory)
        if path is None:
            raise _refuse(f"{directory[:200]!r} is no directory under the service's --weights-root", field)
        return path

    def _refuse_outside(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            if self._root is None or not path.resolve().is_relative_to(self._root):
                raise _refuse("leads out of the service's --weights-root", path.parent.name, name)

    async def _commit(
        self, files: Mapping[str, Path], weight_version: int, base: Weights | None = None
    ) -> CommitResponse:
        """Go the way of an update that is sent, from files instead: a delta if there is a base, else a checkpoint."""
        self._refuse_outside(files)
        request = UpdateRequest(
            weight_version=weight_version,
            base_version=None if base is None else base.version,
            base_digest=None if base is None else base.digest,
            encoding="checkpoint" if base is None else "delta",
            files=[await asyncio.to_thread(_announce, name, path) for name, path in files.items()],
        )
        update_id = self._updates.open(request).update_id
        try:
            for file in request.files:
                chunks = _chunks(files[file.name])
                await self._updates.receive(update_id, file.name, chunks, content_length=file.num_bytes)
        except BaseException:  # also a cancelled request: nothing half-copied is left behind
            with contextlib.suppress(ServiceError):
                await self._updates.drop(update_id)
            raise
        return await self._updates.commit(update_id)


def _directory_under(root: Path, directory: str) -> Path | None:
    try:
        path = (root / directory).resolve()
        return path if path.is_relative_to(root) and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that is too long, one that no file can have, links in a circle
        return None


def _read_version(directory: Path, number: int) -> _Version:
    path = directory / f"weight_v{number:06d}"
    index_path = path / INDEX_NAME
    if not path.is_dir():
        raise _refuse(f"{path.name} is not there", "source_dir")
    data = index_path.read_bytes() if index_path.is_file() else None
    if data is None or not is_index_of_delta(data):
        return _Version(number, _checkpoint(path, path.name))
    try:
        index = DeltaIndex.model_validate_json(data)
    except ValidationError as error:
        faults = [FieldError(loc=[path.name, INDEX_NAME, *fault["loc"]], msg=fault["msg"]) for fault in error.errors()]
        raise invalid_request(faults, consequence=_NOTHING_APPLIED) from error
    told, base = int(index.metadata.version), int(index.metadata.base_version)
    if told != number or base >= number:
        raise _refuse(f"leads from {base} to {told}", path.name, INDEX_NAME)
    return _Version(number, {name: path / name for name in (INDEX_NAME, *index.file_names)}, base)


def _checkpoint(directory: Path, place: str) -> dict[str, Path]:
    """Return the files that transformers would load from the directory."""
    try:
        return {path.name: path for path in checkpoint_files(directory)}
    except CheckpointError as error:
        raise _refuse(str(error), place) from error


def _announce(name: str, path: Path) -> UpdateFile:
    try:
        return describe_file(name, path)
    except OSError as error:
        raise _refuse(f"cannot be read: {error.strerror}", path.parent.name, name) from error
    except ValidationError as error:
        raise _refuse(f"is no file of an update: {error.errors()[0]['msg']}", path.parent.name, name) from error


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, BUFFER_BYTES):
            yield data


def _refuse(message: str, *place: str) -> InvalidRequestError:
    return invalid_request([FieldError(loc=list(place), msg=message)], consequence=_NOTHING_APPLIED)
