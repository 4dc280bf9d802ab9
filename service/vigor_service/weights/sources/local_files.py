"""Updates whose files this machine can read already: whole checkpoints, and versions as slime publishes them.

Files are copied before they are verified, so that their writer may change them afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from vigor_client.schemas.weights import CommitResponse, UpdateFile, UpdateRequest
from vigor_service.errors import ServiceError, WeightBaseMismatchError
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.sources.directory import DirectorySource
from vigor_service.weights.sources.published_versions import PublishedVersion, PublishedVersions, refuse
from vigor_service.weights.updates.manager import Updates
from vigor_service.weights.updates.source import Bring, UpdateSource
from vigor_service.weights.updates.staged_file import BUFFER_BYTES
from vigor_service.weights.updates.update import Update
from vigor_service.weights.version import Weights


class LocalFiles:
    """Takes updates from directories under ``root``; None: from nowhere."""

    def __init__(
        self, updates: Updates, current_weights: CurrentWeights, *, root: Path | None, threads: FileThreads
    ) -> None:
        self._updates = updates
        self._current_weights = current_weights
        self._versions = None if root is None else PublishedVersions(root.resolve())
        self._threads = threads
        self._pulled: tuple[Path, str] | None = None  # from where what serves was pulled, and its digest

    async def source(self, directory: str) -> DirectorySource:
        """Return the source of files that a client wrote into a directory for the service alone.

        Raises:
            InvalidRequestError: the directory is not under the root.
            DeadlineExceededError: its disk does not answer.
        """
        path = await self._threads.run("local", self._required("directory").inside, directory, "directory")
        return DirectorySource(path, self._threads)

    async def load(self, directory: str, weight_version: int) -> CommitResponse:
        """Serve the weights of a checkpoint's directory.

        Raises:
            InvalidRequestError: the directory is not under the root, is not a checkpoint, or is refused as an update.
            ServiceError: as an update that is sent.
        """
        versions = self._required("model_path")
        version = await self._threads.run("local", versions.checkpoint, directory, weight_version, "model_path")
        return await self._commit(versions, version)

    async def pull(self, source: str, target: int) -> Weights:
        """Serve a version of a directory of versions: by the changes since what is served, or from the newest full one.

        Raises:
            InvalidRequestError: a directory is missing, damaged, or not under the root.
            WeightBaseMismatchError: the version is older than the one that was pulled from there.
            ServiceError: as an update that is sent; versions before the one that failed are served.
        """
        versions = self._required("source_dir")
        directory = await self._threads.run("local", versions.inside, source, "source_dir")
        served = self._served_from(directory, target)
        for version in await self._threads.run("local", versions.leading_to, directory, target, served):
            base = None if version.base_number is None else self._current_weights.weights
            await self._commit(versions, version, base)
            self._pulled = directory, self._current_weights.weights.digest
        return self._current_weights.weights

    def _served_from(self, directory: Path, target: int) -> int | None:
        """Return the version that is served, if it came from this directory: changes to it may follow."""
        served = self._current_weights.weights
        if self._pulled != (directory, served.digest) or self._current_weights.state != "ready":
            return None
        if target < served.version:
            raise WeightBaseMismatchError(
                f"version {target} is out of order: {served.version} was pulled from there already",
                have=served.version,
                want=target,
            )
        return served.version

    def _required(self, field: str) -> PublishedVersions:
        if self._versions is None:
            raise refuse("loading weights from disk is disabled: start the service with --weights-root", field)
        return self._versions

    async def _commit(
        self, versions: PublishedVersions, version: PublishedVersion, base: Weights | None = None
    ) -> CommitResponse:
        """Open, receive and commit a version as an update: a delta if there is a base, else a checkpoint."""
        announced = [
            await self._threads.run_steps("local", versions.announce(name, path))
            for name, path in version.files.items()
        ]
        request = UpdateRequest(
            weight_version=version.number,
            base_version=None if base is None else base.version,
            base_digest=None if base is None else base.digest,
            encoding="checkpoint" if base is None else "delta",
            files=announced,
        )
        update_id = (await self._updates.open(request)).update_id
        try:
            await self._updates.receive(update_id, CopySource(versions, version, self._threads))
        except BaseException:  # also a cancelled request: nothing half-copied is left behind
            with contextlib.suppress(ServiceError):
                await self._updates.drop(update_id)
            raise
        return await self._updates.commit(update_id)


class CopySource(UpdateSource):
    """All files of a published version, which stay where they are."""

    name = "copy"

    def __init__(self, versions: PublishedVersions, version: PublishedVersion, threads: FileThreads) -> None:
        self._versions = versions
        self._version = version
        self._threads = threads

    @contextlib.asynccontextmanager
    async def started(self, update: Update, files: Sequence[UpdateFile]) -> AsyncGenerator[Bring]:  # noqa: ARG002 - as the others
        """Copy the files.

        Raises:
            InvalidRequestError: one of them cannot be read, or has changed since it was announced.
            DeadlineExceededError: their disk does not answer.
        """
        yield lambda staged: staged.write(self._chunks(self._version.files[staged.announced.name]))

    async def _chunks(self, path: Path) -> AsyncIterator[bytes]:
        file = await self._threads.run("local", self._versions.open, path)
        try:
            while data := await self._threads.run("local", file.read, BUFFER_BYTES):
                yield data
        finally:
            await self._threads.run("local", file.close)
