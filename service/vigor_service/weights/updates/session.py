"""One weight update: what was announced, what has come, and what may be done with it now."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import CommitResponse, UpdateFile, UpdateRequest, UpdateState, UpdateStatus
from vigor_service.errors import UpdateConflictError, invalid_request
from vigor_service.weights.updates.newest_sender import NewestSender


@dataclass(slots=True, eq=False)
class Update:
    """An update from its opening to its outcome. ``touched_at`` is in the event loop's seconds.

    ``senders`` are by file name. ``fetching`` is held by the request that has the service fetch files by itself.
    """

    update_id: str
    request: UpdateRequest
    directory: Path
    touched_at: float
    received: set[str] = field(default_factory=set)
    senders: defaultdict[str, NewestSender] = field(default_factory=lambda: defaultdict(NewestSender))
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    commit: asyncio.Task[CommitResponse] | None = None
    is_verified: bool = False
    is_dropped: bool = False

    @property
    def num_bytes(self) -> int:
        """Announced bytes, all files together."""
        return sum(file.num_bytes for file in self.request.files)

    @property
    def paths(self) -> dict[str, Path]:
        """File name -> where it lies once it is received."""
        return {file.name: self.directory / file.name for file in self.request.files}

    @property
    def was_refused(self) -> bool:
        """Whether it was committed and did not pass."""
        return self.commit is not None and self.commit.done() and self.commit.exception() is not None

    @property
    def is_gone(self) -> bool:
        """Whether nothing more can come of it: it was dropped or refused."""
        return self.is_dropped or self.was_refused

    @property
    def is_receiving(self) -> bool:
        """Whether a file is on its way."""
        return any(sender.is_active for sender in self.senders.values())

    async def stop_receiving(self) -> None:
        """End every sender, and return once nothing is written any more."""
        await asyncio.gather(*(sender.stop() for sender in self.senders.values()))

    def touch(self) -> None:
        """Note that somebody still works on it."""
        self.touched_at = asyncio.get_running_loop().time()

    def status(self) -> UpdateStatus:
        """Return what ``GET /v1/weights/updates/{id}`` answers."""
        names = [file.name for file in self.request.files]
        return UpdateStatus(
            update_id=self.update_id,
            weight_version=self.request.weight_version,
            state=self._state(),
            received_files=[name for name in names if name in self.received],
            missing_files=[name for name in names if name not in self.received],
        )

    def status_of_same(self, request: UpdateRequest) -> UpdateStatus:
        """Return the state for a caller that opens the update again.

        Raises:
            InvalidRequestError: with another request.
            UpdateConflictError: it was dropped or refused.
        """
        if request != self.request:
            place = FieldError(
                loc=["header", IDEMPOTENCY_HEADER], msg="named another update; give each a name of its own"
            )
            raise invalid_request([place], consequence="no update was opened")
        if self.is_gone:
            outcome = "dropped" if self.is_dropped else "refused"
            raise UpdateConflictError(f"the update was {outcome}: open another one, by another name", state=outcome)
        return self.status()

    def _state(self) -> UpdateState:
        if self.commit is None:
            return "receiving"
        if self.commit.done():
            return "committed"
        return "applying" if self.is_verified else "verifying"

    def announced(self, name: str, content_length: int | None) -> UpdateFile:
        """Return what was announced of a file that comes with this ``Content-Length``, if with any.

        Raises:
            InvalidRequestError: it was not announced, or with another length.
        """
        announced = next((file for file in self.request.files if file.name == name), None)
        if announced is None:
            raise _refuse(name, "was not announced when the update was opened")
        if content_length not in (None, announced.num_bytes):
            raise _refuse(name, f"Content-Length is {content_length}, {announced.num_bytes} bytes were announced")
        return announced

    def require_complete(self) -> None:
        """Raise UpdateConflictError unless every file has come."""
        missing = self.status().missing_files
        if missing:
            detail = f"files are missing: {', '.join(missing)}; send them, then commit"
            raise UpdateConflictError(detail, state="receiving", missing_files=[*missing])


def _refuse(name: str, message: str) -> Exception:
    place = FieldError(loc=["files", name], msg=message)
    return invalid_request([place], consequence="the file was not read")
