"""The missing files of an update through torch.distributed, then treated as if they were sent over HTTP.

The service's end is a process of its own, which is killed when a file is refused, late or complete: nothing that
torch.distributed does, or waits for, happens in the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vigor_client.errors import BroadcastError
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import BroadcastRequest, UpdateFile, UpdateStatus
from vigor_client.weight_format.broadcast_process import RECEIVER, BroadcastProcess, End
from vigor_service.errors import DeadlineExceededError, InvalidRequestError, invalid_request
from vigor_service.weights.updates.manager import Updates
from vigor_service.weights.updates.upload import BUFFER_BYTES


class BroadcastReceiver:
    """Receives broadcasts for a model on ``device``, if it ``is_allowed``; every 4 MiB have ``timeout_seconds``."""

    def __init__(self, updates: Updates, *, device: str, is_allowed: bool, timeout_seconds: float) -> None:
        self._updates = updates
        self._device = device
        self._is_allowed = is_allowed
        self._timeout_seconds = timeout_seconds

    async def receive(self, update_id: str, request: BroadcastRequest) -> UpdateStatus:
        """Receive all files that have not come yet, in the order in which they were announced.

        Raises:
            InvalidRequestError: it is not allowed or has no device; or the other end went away, or sent other bytes.
            DeadlineExceededError: nobody was there, or bytes were late. As after the former, the update stays open.
            UpdateNotFoundError, UpdateConflictError: the update takes no files now.
            StagingFullError: the disk is full.
        """
        self._refuse_what_cannot_be(request)
        async with self._updates.fetching(update_id):
            files = self._updates.missing(update_id)
            if files:
                await self._receive(update_id, request, files)
        return self._updates.status(update_id)

    async def _receive(self, update_id: str, request: BroadcastRequest, files: list[UpdateFile]) -> None:
        try:
            async with _running(self._end(request, files)) as process:
                for file in files:
                    chunks = _chunks(process, file)
                    await self._updates.receive(update_id, file.name, chunks, content_length=file.num_bytes)
        except DeadlineExceededError as error:
            place = f"{request.host} port {request.port}"
            raise DeadlineExceededError(f"{error.detail}, by {request.backend} from {place}") from error

    def _end(self, request: BroadcastRequest, files: list[UpdateFile]) -> End:
        return End(
            rank=RECEIVER,
            backend=request.backend,
            host=request.host,
            port=request.port,
            num_bytes=sum(file.num_bytes for file in files),
            timeout_seconds=self._timeout_seconds,
            device=self._device if request.backend == "nccl" else "cpu",
        )

    def _refuse_what_cannot_be(self, request: BroadcastRequest) -> None:
        if not self._is_allowed:
            raise _refuse("the service takes no broadcasts: start it with --allow-broadcast", "broadcast")
        if request.backend == "nccl" and not self._device.startswith("cuda"):
            raise _refuse(f"nccl needs a GPU, and the model is on {self._device}: use gloo", "backend")


@asynccontextmanager
async def _running(end: End) -> AsyncIterator[BroadcastProcess]:
    process = await asyncio.to_thread(BroadcastProcess, end)
    try:
        yield process
    finally:
        process.kill()  # before anything is awaited: whoever reads from it goes on
        await asyncio.to_thread(process.close)


async def _chunks(process: BroadcastProcess, file: UpdateFile) -> AsyncIterator[bytes]:
    missing_bytes = file.num_bytes
    while missing_bytes:
        try:
            data = await asyncio.to_thread(process.read, min(BUFFER_BYTES, missing_bytes))
        except BroadcastError as error:
            received = file.num_bytes - missing_bytes
            message = f"broke off after {received} of {file.num_bytes} bytes: {error}"
            raise _refuse(message, "files", file.name) from error
        missing_bytes -= len(data)
        yield data


def _refuse(message: str, *place: str) -> InvalidRequestError:
    consequence = "the update stays open, and files that did not come may be sent again"
    return invalid_request([FieldError(loc=list(place), msg=message)], consequence=consequence)
