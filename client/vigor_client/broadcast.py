"""The files of an update through torch.distributed instead of HTTP; opening and committing it stay as they are."""

from __future__ import annotations

import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vigor_client.broadcast_process import SENDER, BroadcastProcess, End
from vigor_client.endpoints import Endpoints
from vigor_client.errors import BroadcastError, VigorError
from vigor_client.plan import Plan
from vigor_client.schemas import BroadcastBackend, BroadcastRequest

DEFAULT_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Broadcast:
    """How weights go to the service through torch.distributed, in a trusted network.

    ``host`` is an address of this machine at which the service reaches it, ``port`` 0 takes a free one.
    ``timeout_seconds`` is how long this side waits for the service to come, and to take each chunk.
    ``nccl`` sends from the current CUDA device.

    Raises:
        ValueError: one of them cannot be used.
    """

    backend: BroadcastBackend = "gloo"
    host: str = "127.0.0.1"
    port: int = 0
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        if self.backend not in ("gloo", "nccl"):
            raise ValueError(f"backend is {self.backend!r}; give gloo or nccl")
        if not self.host or not 0 <= self.port <= 65535:
            raise ValueError(f"{self.host!r} port {self.port} is no address; give a host, and a port of 0 to 65535")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}; give more than 0")

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Send the planned files to an open update, as its ``put_file`` would one by one.

        Raises:
            BroadcastError: this side cannot begin.
            VigorError: the service refused, or did not get everything in time; a note says what became of this side.
            Exception: what the tensors raised when they were read.
        """
        with (
            ThreadPoolExecutor(1, thread_name_prefix="broadcast-weights") as threads,
            _listening(self, _device(self), plan.num_bytes) as (process, port),
        ):
            request = BroadcastRequest(backend=self.backend, host=self.host, port=port)
            sending = threads.submit(process.send, (chunk for file in plan.files for chunk in file.chunks()))
            try:
                await endpoints.broadcast(update_id, request, num_bytes=plan.num_bytes)
            except VigorError as refusal:
                if fault := process.fault():
                    refusal.add_note(f"the sending end: {fault}")
                process.kill()
                with suppress(BroadcastError):  # what the tensors raised is the cause, and the refusal what came of it
                    await endpoints.wire.compute(sending.result)
                raise


@contextmanager
def _listening(broadcast: Broadcast, device: str, num_bytes: int) -> Generator[tuple[BroadcastProcess, int]]:
    """The sender's process and its port: open from the start, so that both ends may start at once."""
    family = socket.AF_INET6 if ":" in broadcast.host else socket.AF_INET
    try:
        listener = socket.create_server((broadcast.host, broadcast.port), family=family)
    except OSError as error:
        place = f"{broadcast.host} port {broadcast.port}"
        raise BroadcastError(f"cannot listen on {place}: {error.strerror}; give an address of this machine") from error
    with listener:
        port: int = listener.getsockname()[1]
        end = End(
            rank=SENDER,
            backend=broadcast.backend,
            host=broadcast.host,
            port=port,
            num_bytes=num_bytes,
            timeout_seconds=broadcast.timeout_seconds,
            device=device,
            listener=listener.fileno(),
        )
        process = BroadcastProcess(end)
    with process:
        yield process, port


def _device(broadcast: Broadcast) -> str:
    if broadcast.backend == "gloo":
        return "cpu"
    from torch import cuda, distributed

    if not (distributed.is_nccl_available() and cuda.is_available()):
        raise BroadcastError("nccl needs a CUDA device and a torch that has it; use gloo here")
    return f"cuda:{cuda.current_device()}"
