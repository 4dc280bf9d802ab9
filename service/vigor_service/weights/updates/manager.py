"""Which weight update is open, and what became of the last ones. One is open at a time.

How files are received, verified and swapped it leaves to others.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from vigor_client.schemas.weights import WHOLE_ENCODINGS, CommitResponse, UpdateFile, UpdateRequest, UpdateStatus
from vigor_service.errors import (
    PayloadTooLargeError,
    ServiceError,
    UpdateConflictError,
    UpdateNotFoundError,
    WeightBaseMismatchError,
)
from vigor_service.observability.metrics import Metrics
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.storage.state import StateDirectory
from vigor_service.weights.updates.commit import Committer, log_refusal
from vigor_service.weights.updates.move_in import give_back, require_takable, take_file
from vigor_service.weights.updates.newest_sender import SupersededError
from vigor_service.weights.updates.session import Update
from vigor_service.weights.updates.upload import receive_file

_logger = logging.getLogger(__name__)

REMEMBERED_UPDATES = 16
RETRY_SECONDS = 1.0
_HEADER_BYTES_PER_TENSOR = 1024  # a tensor's entry in a safetensors header is shorter than this
_HEADER_BYTES_PER_FILE = 1 << 16
_CHECKPOINT_COPIES = 4  # a checkpoint may have a wider dtype, tied tensors twice, and buffers that the model ignores


class Updates:
    """The updates of one service."""

    def __init__(
        self,
        current_weights: CurrentWeights,
        committer: Committer,
        *,
        staging: StagingArea,
        state: StateDirectory | None,
        threads: FileThreads,
        metrics: Metrics,
        timeout_seconds: float,
        max_upload_bytes: int | None,
    ) -> None:
        self._current_weights = current_weights
        self._committer = committer
        self._staging = staging
        self._state = state
        self._threads = threads
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._max_upload_bytes = max_upload_bytes
        self._open: Update | None = None
        self._opening = asyncio.Lock()
        self._ended: OrderedDict[str, Update] = OrderedDict()
        self._expiry: asyncio.Task[None] | None = None

    async def open(self, request: UpdateRequest, update_id: str | None = None) -> UpdateStatus:
        """Open an update, under the name that its caller gives it. Asking again gives the state of the same update.

        Raises:
            InvalidRequestError: the name came before, with another request.
            UpdateConflictError: another one is open; or the one of this name was dropped or refused.
            WeightBaseMismatchError: it was made from other weights than those that serve, or a full update is due.
            PayloadTooLargeError: it announces more bytes than the model can need.
            StagingFullError: the disk has too little space.
            DeadlineExceededError: the disk does not answer.
        """
        async with self._opening:  # a request that comes again waits for the directory of the first one
            if update_id is not None and (known := self._find(update_id)) is not None:
                return known.status_of_same(request)
            self._refuse_second()
            self._refuse_other_base(request)
            self._refuse_oversize(request)
            return await self._make(request, update_id)

    async def _make(self, request: UpdateRequest, update_id: str | None) -> UpdateStatus:
        directory = self._staging.directory(secrets.token_hex(16))  # never a name that a caller chose
        update = Update(update_id or secrets.token_hex(16), request, directory, asyncio.get_running_loop().time())
        self._open = update
        self._metrics.weight_update_active.set(1)
        try:
            await self._staging.create(directory.name, num_bytes=update.num_bytes)
        except BaseException:  # also of a request that was cancelled
            await self._discard(update)
            raise
        self._expiry = asyncio.create_task(self._expire(update))
        return update.status()

    async def receive(
        self, update_id: str, name: str, chunks: AsyncIterator[bytes], *, content_length: int | None
    ) -> UpdateStatus:
        """Stream one announced file to disk; it replaces what was received of it before, and ends an older sender.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update takes no file now, or a newer request sends this one.
            InvalidRequestError, DeadlineExceededError, StagingFullError: as `receive_file`; nothing of it stays.
        """
        update = self._require_receiving(update_id)
        announced = update.announced(name, content_length)
        path, limit = update.paths[name], self._timeout_seconds
        work = partial(
            receive_file, chunks, path, announced, threads=self._threads, stall_seconds=limit, on_progress=update.touch
        )
        await self._receive(update, announced, work)
        return update.status()

    async def take(self, update_id: str, directory: Path) -> UpdateStatus:
        """Take the announced files that have not come yet from a directory of this machine.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update takes no file now.
            InvalidRequestError, StagingFullError, DeadlineExceededError: as `take_file`; the directory is as it was.
        """
        async with self.fetching(update_id) as update:
            missing, taken = self.missing(update_id), list[str]()
            for file in missing:
                await self._threads.run("local", require_takable, directory / file.name, file)
            try:
                for file in missing:
                    taking = take_file(directory / file.name, update.paths[file.name], file)
                    await self._receive(update, file, partial(self._threads.run_steps, "local", taking))
                    taken.append(file.name)
            except ServiceError:
                await self._give_back(update_id, taken, directory)
                raise
        return self.status(update_id)

    async def _give_back(self, update_id: str, names: list[str], directory: Path) -> None:
        update = self._open
        if update is None or update.update_id != update_id or update.commit is not None:
            return
        for name in names:
            update.received.discard(name)
            await self._threads.run("local", give_back, update.paths[name], directory / name)

    @asynccontextmanager
    async def fetching(self, update_id: str) -> AsyncIterator[Update]:
        """Keep others from having the service fetch files of this update: a request that comes again finds them there.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update takes no file now.
        """
        update = self._require_receiving(update_id)
        async with update.fetching:
            yield update

    async def _receive(
        self, update: Update, announced: UpdateFile, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Let this sender bring the file, and note that it has come."""
        started = perf_counter()
        try:
            await update.senders[announced.name].send(work)
        except SupersededError:
            self._require_receiving(update.update_id)
            detail = f"file {announced.name} is being received from a newer request"
            raise UpdateConflictError(detail, state="receiving", retry_after_seconds=RETRY_SECONDS) from None
        finally:
            update.touch()
        self._require_receiving(update.update_id).received.add(announced.name)
        self._metrics.weight_update_bytes.labels(update.request.encoding).inc(announced.num_bytes)
        self._metrics.weight_update_seconds.labels("receive").observe(perf_counter() - started)

    def missing(self, update_id: str) -> list[UpdateFile]:
        """Return the announced files that have not come yet, in their order.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update takes no file now.
        """
        update = self._require_receiving(update_id)
        return [file for file in update.request.files if file.name not in update.received]

    async def commit(self, update_id: str) -> CommitResponse:
        """Verify the update and serve it. Asking again gives the same answer, whatever it was.

        Raises:
            UpdateNotFoundError, UpdateConflictError: there is nothing to commit, or files are missing (it stays open).
            InvalidRequestError: it was refused; names every reason. It is dropped, and the old weights serve on.
            WeightsPoisonedError: the swap failed half-way.
        """
        update = self._find(update_id)
        if update is None or update.commit is None:
            update = self._require_receiving(update_id)
            update.require_complete()
            update.commit = asyncio.create_task(self._commit(update))
            update.commit.add_done_callback(log_refusal)
            self._remember(update)
        # A client that goes away does not stop its commit.
        return await asyncio.shield(update.commit)

    def status(self, update_id: str) -> UpdateStatus:
        """Return where an update stands.

        Raises:
            UpdateNotFoundError: it never was, or was dropped, refused, expired or forgotten.
        """
        update = self._find(update_id)
        if update is None or update.is_gone:
            raise _not_found(update_id)
        return update.status()

    async def drop(self, update_id: str) -> None:
        """End an open update and free its disk. Asking again does nothing.

        Raises:
            UpdateNotFoundError, UpdateConflictError: it is not open, or is being committed.
        """
        update = self._find(update_id)
        if update is not None and update.is_dropped:
            return
        update = self._require_receiving(update_id)
        update.is_dropped = True
        self._remember(update)
        await self._discard(update)

    def close(self) -> None:
        """Stop the clock of an open update."""
        if self._expiry is not None:
            self._expiry.cancel()

    async def _commit(self, update: Update) -> CommitResponse:
        try:
            await update.stop_receiving()
            return await self._committer.commit(update)
        finally:
            await self._discard(update)

    async def _expire(self, update: Update) -> None:
        """Drop the update once nobody has touched it for the timeout."""
        while (left := self._seconds_left(update)) > 0:
            await asyncio.sleep(left)
        if update is self._open and update.commit is None:
            _logger.warning("weight_update_expired", extra={"version": update.request.weight_version})
            await self._discard(update)

    def _seconds_left(self, update: Update) -> float:
        """A file on its way has a limit of its own; when that ends it, there is time to send the file again."""
        if update.is_receiving:
            return self._timeout_seconds
        return update.touched_at + self._timeout_seconds - asyncio.get_running_loop().time()

    async def _discard(self, update: Update) -> None:
        if self._open is update:
            self._open = None
            self._metrics.weight_update_active.set(0)
        await update.stop_receiving()
        await self._staging.remove(update.directory)

    def _find(self, update_id: str) -> Update | None:
        """Return an update that is open, or among the last that were committed, refused or dropped."""
        if self._open is not None and self._open.update_id == update_id:
            return self._open
        return self._ended.get(update_id)

    def _require_receiving(self, update_id: str) -> Update:
        known = self._find(update_id)
        if known is None or known.is_gone:
            raise _not_found(update_id)
        if known.commit is not None:
            state = known.status().state
            raise UpdateConflictError(f"the update is {state}", state=state)
        return known

    def _remember(self, update: Update) -> None:
        self._ended[update.update_id] = update
        while len(self._ended) > REMEMBERED_UPDATES:
            self._ended.popitem(last=False)

    def _refuse_second(self) -> None:
        if self._open is not None:
            status = self._open.status()
            raise UpdateConflictError(
                f"an update to version {status.weight_version} is {status.state}; drop it or wait for its end",
                state=status.state,
                update_id=status.update_id,
                retry_after_seconds=RETRY_SECONDS,
            )

    def _refuse_other_base(self, request: UpdateRequest) -> None:
        serving = self._current_weights.weights
        bases = ("version", serving.version, request.base_version), ("digest", serving.digest, request.base_digest)
        for kind, have, want in bases:
            if want not in (None, have):
                raise WeightBaseMismatchError(
                    f"the update was made from {kind} {want}, {kind} {have} is served", have=have, want=want
                )
        if request.encoding in WHOLE_ENCODINGS:
            return
        if self._current_weights.state == "poisoned":
            raise WeightBaseMismatchError(
                "the weights are poisoned: there is no base; send a full update", have=None, want=request.base_version
            )
        if self._state is not None:
            self._state.require_room_to_follow(serving.digest, model_bytes=serving.num_bytes)

    def _refuse_oversize(self, request: UpdateRequest) -> None:
        num_bytes = sum(file.num_bytes for file in request.files)
        limit = self._max_upload_bytes or self._natural_limit(request)
        if num_bytes > limit:
            raise PayloadTooLargeError(f"the update announces {num_bytes} bytes, the limit is {limit}", limit=limit)

    def _natural_limit(self, request: UpdateRequest) -> int:
        """Every tensor, tied ones under each of their names, and the headers of the files."""
        weights, num_files = self._current_weights.weights, len(request.files)
        num_names = sum(1 + len(info.aliases) for info in weights.tensors)
        copies = 2 if num_names > len(weights.tensors) else 1
        if request.encoding == "checkpoint":
            copies = _CHECKPOINT_COPIES
        return weights.num_bytes * copies + num_names * _HEADER_BYTES_PER_TENSOR + num_files * _HEADER_BYTES_PER_FILE


def _not_found(update_id: str) -> UpdateNotFoundError:
    return UpdateNotFoundError(f"update {update_id[:64]!r} was never opened, or was dropped, refused or expired")
