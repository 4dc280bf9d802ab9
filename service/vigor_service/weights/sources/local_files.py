"""Updates from files that this machine can read: whole checkpoints, and versions as slime publishes them.

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
    """Loads updates from directories under ``root``; with None, loading from disk is refused."""

    def __init__(
        self, updates: Updates, current_weights: CurrentWeights, *, root: Path | None, threads: FileThreads
    ) -> None:
        self._updates = updates
        self._current_weights = current_weights
        self._versions = None if root is None else PublishedVersions(root.resolve())
        self._threads = threads
        self._pulled: tuple[Path, str] | None = None  # directory and digest of the last pulled version

    async def source(self, directory: str) -> DirectorySource:
        """Return the source of files that a client wrote into a directory only for the service.

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
            ServiceError: as for an update that a client sends.
        """
        versions = self._required("model_path")
        version = await self._threads.run("local", versions.checkpoint, directory, weight_version, "model_path")
        return await self._commit(versions, version)

    async def pull(self, source: str, target: int) -> Weights:
        """Serve a version from a directory of versions: apply the deltas since the served one or the newest full one.

        Raises:
            InvalidRequestError: a directory is missing, damaged, or not under the root.
            WeightBaseMismatchError: the version is older than the one that was pulled from this directory before.
            ServiceError: as for an update that a client sends. The last version before the failed one is served.
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
        """Return the served version if it was pulled from this directory, so that deltas can be applied to it."""
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
        except BaseException:  # also for a cancelled request: no partial copy must remain
            with contextlib.suppress(ServiceError):
                await self._updates.drop(update_id)
            raise
        return await self._updates.commit(update_id)


class CopySource(UpdateSource):
    """All files of a published version. They are copied, and stay where they are."""

    name = "copy"

    def __init__(self, versions: PublishedVersions, version: PublishedVersion, threads: FileThreads) -> None:
        self._versions = versions
        self._version = version
        self._threads = threads

    @contextlib.asynccontextmanager
    async def started(self, update: Update, files: Sequence[UpdateFile]) -> AsyncGenerator[Bring]:  # noqa: ARG002 - the protocol's signature
        """Copy the files.

        Raises:
            InvalidRequestError: a file cannot be read, or has changed since it was announced.
            DeadlineExceededError: the disk does not answer.
        """
        yield lambda staged: staged.write(self._chunks(self._version.files[staged.announced.name]))

    async def _chunks(self, path: Path) -> AsyncIterator[bytes]:
        file = await self._threads.run("local", self._versions.open, path)
        try:
            while data := await self._threads.run("local", file.read, BUFFER_BYTES):
                yield data
        finally:
            await self._threads.run("local", file.close)
