"""Receives the missing files of an update through torch.distributed.

The receiving end is a process of its own, so that torch.distributed cannot block the service. That process is killed
when a file is refused or late, and when all files have arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vigor_client.errors import BroadcastError
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import BroadcastRequest, UpdateFile
from vigor_client.weight_format.broadcast_process import RECEIVER, BroadcastProcess, End
from vigor_service.errors import DeadlineExceededError, InvalidRequestError, invalid_request
from vigor_service.weights.updates.source import Bring, UpdateSource
from vigor_service.weights.updates.staged_file import BUFFER_BYTES
from vigor_service.weights.updates.update import Update


class BroadcastReceiver:
    """Creates broadcast sources for a model on ``device``, if ``is_allowed``.

    Every 4 MiB must arrive within ``timeout_seconds``.
    """

    def __init__(self, *, device: str, is_allowed: bool, timeout_seconds: float) -> None:
        self._device = device
        self._is_allowed = is_allowed
        self._timeout_seconds = timeout_seconds

    def source(self, request: BroadcastRequest) -> BroadcastSource:
        """Return the source of the broadcast that the request announces.

        Raises:
            InvalidRequestError: broadcasts are not allowed, or nccl is requested without a GPU.
        """
        if not self._is_allowed:
            raise _refuse("broadcasts are disabled: start the service with --allow-broadcast", "broadcast")
        if request.backend == "nccl" and not self._device.startswith("cuda"):
            raise _refuse(f"nccl needs a GPU, and the model is on {self._device}: use gloo", "backend")
        device = self._device if request.backend == "nccl" else "cpu"
        return BroadcastSource(request, device=device, timeout_seconds=self._timeout_seconds)


class BroadcastSource(UpdateSource):
    """All missing files of an update, one after the other, in a process that ends with the context."""

    name = "broadcast"

    def __init__(self, request: BroadcastRequest, *, device: str, timeout_seconds: float) -> None:
        self._request = request
        self._device = device
        self._timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def started(self, update: Update, files: Sequence[UpdateFile]) -> AsyncGenerator[Bring]:  # noqa: ARG002 - the protocol's signature
        """Join the broadcast.

        Raises:
            InvalidRequestError: the sender disconnected. The update stays open.
            DeadlineExceededError: no sender connected, or bytes arrived too late. The update stays open.
        """
        try:
            async with _running(self._end(files)) as process:
                yield lambda staged: staged.write(_chunks(process, staged.announced))
        except DeadlineExceededError as error:
            place = f"{self._request.host} port {self._request.port}"
            raise DeadlineExceededError(f"{error.detail}, by {self._request.backend} from {place}") from error

    def _end(self, files: Sequence[UpdateFile]) -> End:
        return End(
            rank=RECEIVER,
            backend=self._request.backend,
            host=self._request.host,
            port=self._request.port,
            num_bytes=sum(file.num_bytes for file in files),
            timeout_seconds=self._timeout_seconds,
            device=self._device,
        )


@asynccontextmanager
async def _running(end: End) -> AsyncGenerator[BroadcastProcess]:
    process = await asyncio.to_thread(BroadcastProcess, end)
    try:
        yield process
    finally:
        process.kill()  # before any await: a thread that is still reading then returns
        await asyncio.to_thread(process.close)


async def _chunks(process: BroadcastProcess, file: UpdateFile) -> AsyncIterator[bytes]:
    missing_bytes = file.num_bytes
    while missing_bytes:
        try:
            data = await asyncio.to_thread(process.read, min(BUFFER_BYTES, missing_bytes))
        except BroadcastError as error:
            received = file.num_bytes - missing_bytes
            message = f"stopped after {received} of {file.num_bytes} bytes: {error}"
            raise _refuse(message, "files", file.name) from error
        missing_bytes -= len(data)
        yield data


def _refuse(message: str, *place: str) -> InvalidRequestError:
    consequence = "the update stays open, and the missing files may be sent again"
    return invalid_request([FieldError(loc=list(place), msg=message)], consequence=consequence)
