"""Sends the files of an update through torch.distributed; the update is still opened and committed over HTTP."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from vigor_client.errors import BroadcastError, VigorError
from vigor_client.schemas.weights import BroadcastBackend, BroadcastRequest
from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.broadcast_process import SENDER, BroadcastProcess, End
from vigor_client.weight_format.update_plan import Plan

DEFAULT_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Broadcast:
    """How weights go to the service through torch.distributed, in a trusted network.

    ``host`` is an address of this machine at which the service reaches it; ``port`` 0 takes a free port.
    ``timeout_seconds`` is how long this side waits for the service to connect, and to take each chunk.
    ``nccl`` sends from the current CUDA device.

    Raises:
        ValueError: an argument cannot be used.
    """

    backend: BroadcastBackend = "gloo"
    host: str = "127.0.0.1"
    port: int = 0
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        if self.backend not in ("gloo", "nccl"):
            raise ValueError(f"backend is {self.backend!r}; give gloo or nccl")
        if not self.host or not 0 <= self.port <= 65535:
            raise ValueError(
                f"{self.host!r} port {self.port} is not an address; give a host, and a port from 0 to 65535"
            )
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}; give more than 0")

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Send the planned files to an open update, as one ``put_file`` per file would.

        Raises:
            BroadcastError: this side cannot begin.
            VigorError: the service refused, or did not get everything in time; a note gives the state of this side.
            Exception: the error raised when the tensors were read.
        """
        sender = _Sender(self, plan)
        try:
            await endpoints.broadcast(update_id, sender.request, num_bytes=plan.num_bytes)
        except VigorError as refusal:
            await endpoints.wire.compute(partial(sender.explain, refusal))
            raise
        finally:
            sender.process.kill()  # before awaiting anything: this releases a thread that waits for the process
            await endpoints.wire.compute(sender.close)


class _Sender:
    """The process that sends, its address, and the thread that feeds it.

    Its methods wait for both, which may take long where a tensor is read slowly: an event loop must not call them.
    """

    def __init__(self, broadcast: Broadcast, plan: Plan) -> None:
        with _listener(broadcast) as listener:  # open from the start, so that both ends can start at the same time
            end = _end(broadcast, listener, plan.num_bytes)
            self.request = BroadcastRequest(backend=broadcast.backend, host=broadcast.host, port=end.port)
            self.process = BroadcastProcess(end)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="broadcast-weights")
        self._sending = self._thread.submit(
            self.process.send, (chunk for file in plan.files for chunk in file.chunks())
        )

    def explain(self, refusal: VigorError) -> None:
        """Stop sending, and add the state of this end as a note to the service's refusal.

        Raises:
            Exception: the error raised when the tensors were read, which caused the refusal.
        """
        if fault := self.process.fault():
            refusal.add_note(f"the sending end: {fault}")
        self.process.kill()
        with suppress(BroadcastError):
            self._sending.result()

    def close(self) -> None:
        """End process and thread, and release their resources."""
        self.process.close()
        self._thread.shutdown()


def _listener(broadcast: Broadcast) -> socket.socket:
    family = socket.AF_INET6 if ":" in broadcast.host else socket.AF_INET
    try:
        return socket.create_server((broadcast.host, broadcast.port), family=family)
    except OSError as error:
        place = f"{broadcast.host} port {broadcast.port}"
        raise BroadcastError(f"cannot listen on {place}: {error.strerror}; give an address of this machine") from error


def _end(broadcast: Broadcast, listener: socket.socket, num_bytes: int) -> End:
    return End(
        rank=SENDER,
        backend=broadcast.backend,
        host=broadcast.host,
        port=listener.getsockname()[1],
        num_bytes=num_bytes,
        timeout_seconds=broadcast.timeout_seconds,
        device=_device(broadcast),
        listener=listener.fileno(),
    )


def _device(broadcast: Broadcast) -> str:
    if broadcast.backend == "gloo":
        return "cpu"
    from torch import cuda, distributed

    if not (distributed.is_nccl_available() and cuda.is_available()):
        raise BroadcastError("the backend nccl needs a CUDA device and a torch that was built with NCCL; use gloo")
    return f"cuda:{cuda.current_device()}"
