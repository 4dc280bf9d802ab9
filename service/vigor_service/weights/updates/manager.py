"""The open weight update, and the last ones that ended. At most one is open at a time.

Sources bring files, and `Committer` verifies and swaps them; this module decides when they may.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial
from time import perf_counter

from vigor_client.schemas.weights import CommitResponse, UpdateFile, UpdateProgress, UpdateRequest, UpdateStatus
from vigor_service.errors import UpdateConflictError
from vigor_service.observability.metrics import Metrics
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.storage.state import StateDirectory
from vigor_service.weights.updates.commit import Committer, log_refusal
from vigor_service.weights.updates.lifecycle import Lifecycle, State
from vigor_service.weights.updates.newest_sender import SupersededError
from vigor_service.weights.updates.opening_checks import refuse_other_base, refuse_oversize
from vigor_service.weights.updates.source import Bring, UpdateSource
from vigor_service.weights.updates.staged_file import StagedFile
from vigor_service.weights.updates.update import RETRY_SECONDS, Update, not_found

_logger = logging.getLogger(__name__)

REMEMBERED_UPDATES = 16


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
        self._opening = asyncio.Lock()
        self._updates: OrderedDict[str, Update] = OrderedDict()  # the open one, and the last ones that ended
        self._expiry: asyncio.Task[None] | None = None

    async def open(self, request: UpdateRequest, update_id: str | None = None) -> UpdateStatus:
        """Open an update under the name that its caller gives it. Opening it again returns its status.

        Raises:
            InvalidRequestError: an update of this name was opened with another request.
            UpdateConflictError: another update is open, or the one of this name was dropped or refused.
            WeightBaseMismatchError: its base is not the served weights, or a full update is required.
            PayloadTooLargeError: it announces more bytes than the limit.
            StagingFullError: the disk has too little space.
            DeadlineExceededError: the disk does not answer.
        """
        async with self._opening:  # a repeated request waits until the first one has made the directory
            if update_id is not None and (known := self._updates.get(update_id)) is not None:
                return known.status_of_same(request)
            self._refuse_second()
            refuse_other_base(request, self._current_weights, self._state)
            refuse_oversize(request, self._current_weights.weights, self._max_upload_bytes)
            return await self._make(request, update_id or secrets.token_hex(16))

    async def _make(self, request: UpdateRequest, update_id: str) -> UpdateStatus:
        directory = self._staging.directory(secrets.token_hex(16))  # never a name chosen by a caller
        lifecycle = Lifecycle(request.weight_version, on_change=self._measure)
        update = Update(update_id, request, directory, lifecycle, asyncio.get_running_loop().time())
        self._remember(update)
        try:
            await self._staging.create(directory.name, num_bytes=update.num_bytes)
            update.require_not_gone()  # the caller may have dropped it meanwhile
        except BaseException:  # also for a cancelled request
            if lifecycle.state is State.OPENING:
                self._end(update, State.REFUSED)
            await self._discard(update)
            raise
        lifecycle.enter(State.RECEIVING)
        self._expiry = asyncio.create_task(self._expire(update))
        return update.status()

    async def receive(self, update_id: str, source: UpdateSource) -> UpdateStatus:
        """Bring files from a source into staging. Each replaces what was received of the same file before.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update accepts no files now, or a newer request is sending
                this file.
            InvalidRequestError, DeadlineExceededError, StagingFullError: as the source and `StagedFile.write`; no part
                of the file stays.
        """
        update = self._known(update_id)
        update.require_receiving()
        async with update.taking_turns if source.takes_turns else nullcontext():
            update.require_receiving()
            if files := source.wanted(update):
                async with source.started(update, files) as bring:
                    for file in files:
                        await self._receive(update, file, bring, source.name)
        return update.status()

    async def _receive(self, update: Update, file: UpdateFile, bring: Bring, source_name: str) -> None:
        """Receive one file, in place of an older sender of the same file, and record it as received."""
        started = perf_counter()
        try:
            await update.senders[file.name].send(partial(bring, self._staged(update, file)))
        except SupersededError:
            update.require_receiving()
            detail = f"file {file.name} is being received from a newer request"
            raise UpdateConflictError(
                detail, state=update.lifecycle.on_the_wire, retry_after_seconds=RETRY_SECONDS
            ) from None
        finally:
            update.arriving.pop(file.name, None)
            update.touch()
        update.require_receiving()
        update.received.add(file.name)
        seconds = perf_counter() - started
        self._metrics.weight_update_bytes.labels(update.request.encoding).inc(file.num_bytes)
        self._metrics.weight_update_seconds.labels("receive").observe(seconds)
        _logger.debug(
            "weight_update_file", extra={"source": source_name, "file": file.name, "seconds": round(seconds, 3)}
        )

    def _staged(self, update: Update, file: UpdateFile) -> StagedFile:
        return StagedFile(
            announced=file,
            path=update.paths[file.name],
            threads=self._threads,
            stall_seconds=self._timeout_seconds,
            on_progress=partial(update.note_arrival, file.name),
        )

    async def commit(self, update_id: str) -> CommitResponse:
        """Verify the update and serve it. Repeated calls get the same result, also if it is an error.

        Raises:
            UpdateNotFoundError, UpdateConflictError: there is nothing to commit, or files are missing (the update stays
                open).
            InvalidRequestError: the update is refused, and the error lists every reason. The old weights stay in
                service.
            WeightsPoisonedError: the swap failed half-way.
        """
        update = self._known(update_id)
        if update.commit is None:
            update.require_receiving()
            update.require_complete()
            update.lifecycle.enter(State.VERIFYING)
            update.commit = asyncio.create_task(self._commit(update))
            update.commit.add_done_callback(log_refusal)
        # A client that disconnects does not stop its commit.
        return await asyncio.shield(update.commit)

    async def _commit(self, update: Update) -> CommitResponse:
        try:
            await update.stop_senders()
            answer = await self._committer.commit(update)
        except BaseException:
            update.lifecycle.enter(State.REFUSED)
            raise
        else:
            update.lifecycle.enter(State.COMMITTED)
            return answer
        finally:
            await self._discard(update)

    def status(self, update_id: str) -> UpdateStatus:
        """Return the state and the files of an update.

        Raises:
            UpdateNotFoundError: the update was never opened, was dropped or refused, has expired, or is too old.
        """
        return self._known(update_id).status()

    def under_way(self) -> UpdateProgress | None:
        """Return the progress of the open update; None if none is open."""
        newest = self._newest_open()
        return None if newest is None else newest.progress()

    async def drop(self, update_id: str) -> None:
        """Drop an open update and free its disk space. Dropping it again does nothing.

        Raises:
            UpdateNotFoundError, UpdateConflictError: the update is not open, or is being committed.
        """
        update = self._known(update_id)
        if update.lifecycle.state is State.DROPPED:
            return
        if update.lifecycle.state is not State.OPENING:
            update.require_receiving()
        update.lifecycle.enter(State.DROPPED)
        await self._discard(update)

    def close(self) -> None:
        """Stop the timeout of an open update."""
        if self._expiry is not None:
            self._expiry.cancel()

    async def _expire(self, update: Update) -> None:
        """End the update if no request for it arrives within the timeout."""
        while (left := self._seconds_left(update)) > 0:
            await asyncio.sleep(left)
        if update.lifecycle.state is State.RECEIVING:
            _logger.warning("weight_update_expired", extra={"version": update.request.weight_version})
            self._end(update, State.EXPIRED)
            await self._discard(update)

    def _seconds_left(self, update: Update) -> float:
        """Return the seconds until the update expires.

        A file that is being received has its own time limit. If that limit ends it, there is time to send it again.
        """
        if update.is_sending:
            return self._timeout_seconds
        return update.touched_at + self._timeout_seconds - asyncio.get_running_loop().time()

    async def _discard(self, update: Update) -> None:
        await update.stop_senders()
        await self._staging.remove(update.directory)

    def _known(self, update_id: str) -> Update:
        """Return the open update, or one of the last that were committed, refused or dropped, by its id."""
        if (update := self._updates.get(update_id)) is None:
            raise not_found(update_id)
        return update

    def _remember(self, update: Update) -> None:
        while len(self._updates) > REMEMBERED_UPDATES:
            self._updates.popitem(last=False)
        self._updates[update.update_id] = update

    def _end(self, update: Update, state: State) -> None:
        """Enter a final state and forget the update, so that its name can be used again."""
        update.lifecycle.enter(state)
        del self._updates[update.update_id]

    def _refuse_second(self) -> None:
        if (newest := self._newest_open()) is not None:
            status = newest.status()
            raise UpdateConflictError(
                f"an update to version {status.weight_version} is {status.state}: wait for it, or drop it",
                state=status.state,
                update_id=status.update_id,
                retry_after_seconds=RETRY_SECONDS,
            )

    def _newest_open(self) -> Update | None:
        newest = next(reversed(self._updates.values()), None)
        return newest if newest is not None and newest.lifecycle.is_open else None

    def _measure(self, lifecycle: Lifecycle) -> None:
        self._metrics.weight_update_active.set(lifecycle.is_open)
