"""One weight update: its announcement, the files that have arrived, and its lifecycle."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import CommitResponse, UpdateFile, UpdateProgress, UpdateRequest, UpdateStatus
from vigor_service.errors import InvalidRequestError, UpdateConflictError, UpdateNotFoundError, invalid_request
from vigor_service.weights.updates.lifecycle import Lifecycle, State
from vigor_service.weights.updates.newest_sender import NewestSender

RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Update:
    """An update from its opening to its outcome. ``touched_at`` is in the event loop's seconds.

    ``senders`` and ``arriving`` are by file name; ``arriving`` has the bytes so far of files that are being received.
    ``taking_turns`` is held by a source that brings all missing files. ``commit`` keeps the result of a commit for
    repeated calls.
    """

    update_id: str
    request: UpdateRequest
    directory: Path
    lifecycle: Lifecycle
    touched_at: float
    received: set[str] = field(default_factory=set[str])
    arriving: dict[str, int] = field(default_factory=dict[str, int])
    senders: defaultdict[str, NewestSender] = field(default_factory=lambda: defaultdict(NewestSender))
    taking_turns: asyncio.Lock = field(default_factory=asyncio.Lock)
    commit: asyncio.Task[CommitResponse] | None = None

    @property
    def num_bytes(self) -> int:
        """Announced size of all files together, in bytes."""
        return sum(file.num_bytes for file in self.request.files)

    @property
    def received_bytes(self) -> int:
        """Number of bytes that have arrived, including those of files that are being received."""
        whole = (file.num_bytes for file in self.request.files if file.name in self.received)
        return sum(whole) + sum(count for name, count in self.arriving.items() if name not in self.received)

    @property
    def paths(self) -> dict[str, Path]:
        """Path that each file has once it is received, by file name."""
        return {file.name: self.directory / file.name for file in self.request.files}

    @property
    def missing(self) -> list[UpdateFile]:
        """The announced files that have not arrived yet, in the order of the announcement."""
        return [file for file in self.request.files if file.name not in self.received]

    @property
    def is_sending(self) -> bool:
        """Whether a file is being received."""
        return any(sender.is_active for sender in self.senders.values())

    async def stop_senders(self) -> None:
        """Cancel all senders, and return once none of them writes any more."""
        await asyncio.gather(*(sender.stop() for sender in self.senders.values()))

    def touch(self) -> None:
        """Restart the timeout."""
        self.touched_at = asyncio.get_running_loop().time()

    def note_arrival(self, name: str, num_bytes: int) -> None:
        """Record how many bytes of a file have arrived so far, and restart the timeout."""
        self.arriving[name] = num_bytes
        self.touch()

    def progress(self) -> UpdateProgress:
        """Return the progress of the update, which must not be gone."""
        return UpdateProgress(
            weight_version=self.request.weight_version,
            state=self.lifecycle.on_the_wire,
            received_bytes=self.received_bytes,
            num_bytes=self.num_bytes,
        )

    def status(self) -> UpdateStatus:
        """Return what ``GET /v1/weights/updates/{id}`` answers.

        Raises:
            UpdateNotFoundError: it was dropped, refused, or expired.
        """
        if self.lifecycle.is_gone:
            raise not_found(self.update_id)
        return UpdateStatus(
            update_id=self.update_id,
            weight_version=self.request.weight_version,
            state=self.lifecycle.on_the_wire,
            received_files=[file.name for file in self.request.files if file.name in self.received],
            missing_files=[file.name for file in self.missing],
        )

    def status_of_same(self, request: UpdateRequest) -> UpdateStatus:
        """Return the status for a caller that opens the update again.

        Raises:
            InvalidRequestError: it was opened with another request.
            UpdateConflictError: it was dropped or refused.
        """
        if request != self.request:
            place = FieldError(
                loc=["header", IDEMPOTENCY_HEADER], msg="is the name of another update: use a new name for each update"
            )
            raise invalid_request([place], consequence="no update was opened")
        self.require_not_gone()
        return self.status()

    def require_not_gone(self) -> None:
        """Raise UpdateConflictError if it was dropped or refused."""
        if self.lifecycle.is_gone:
            outcome = self.lifecycle.state
            raise UpdateConflictError(f"the update was {outcome}: open a new one under another name", state=outcome)

    def require_receiving(self) -> None:
        """Check that files may be sent.

        Raises:
            UpdateNotFoundError: it was dropped, refused, or expired.
            UpdateConflictError: it is not open yet, is being committed, or was committed.
        """
        state = self.status().state
        if self.lifecycle.state is State.OPENING:
            raise UpdateConflictError("the update is being opened", state=state, retry_after_seconds=RETRY_SECONDS)
        if self.lifecycle.state is not State.RECEIVING:
            raise UpdateConflictError(f"the update is {state}", state=state)

    def require_complete(self) -> None:
        """Raise UpdateConflictError unless every file has arrived."""
        if missing := [file.name for file in self.missing]:
            detail = f"files are missing: {', '.join(missing)}; send them, then commit"
            raise UpdateConflictError(detail, state=self.lifecycle.on_the_wire, missing_files=[*missing])

    def announced(self, name: str, content_length: int | None) -> UpdateFile:
        """Return the announcement of a file that is sent with this ``Content-Length``, which may be None.

        Raises:
            InvalidRequestError: the file was not announced, or was announced with another length.
        """
        announced = next((file for file in self.request.files if file.name == name), None)
        if announced is None:
            raise _refuse(name, "was not announced when the update was opened")
        if content_length not in (None, announced.num_bytes):
            raise _refuse(name, f"Content-Length is {content_length}, {announced.num_bytes} bytes were announced")
        return announced


def not_found(update_id: str) -> UpdateNotFoundError:
    """Return the error which says that there is no update with this id."""
    return UpdateNotFoundError(f"update {update_id[:64]!r} was never opened, or was dropped, refused or expired")


def _refuse(name: str, message: str) -> InvalidRequestError:
    place = FieldError(loc=["files", name], msg=message)
    return invalid_request([place], consequence="the file was not read")
