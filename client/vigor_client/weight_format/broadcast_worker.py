"""The program of one end of a broadcast: the sender reads bytes from its input, the receiver writes them to its output.

The two form the default process group of torch.distributed, each in a process of its own, so that no process group of
the trainer is touched. Both ends know the number of bytes, from which the chunk sizes follow: no header is sent.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO

from vigor_client.weight_format.broadcast_process import SENDER, End

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - as below

CHUNK_BYTES = 16 << 20
_RECEIVED = "received"


def main() -> None:
    """Run the end that the first argument describes; the last line on standard error says why it failed."""
    end = End.parse(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _keep_to_loopback(end.host)
    try:
        _pump(end)
    except (RuntimeError, OSError, EOFError) as error:  # torch.distributed's errors are RuntimeErrors
        print(str(error).splitlines()[0], file=sys.stderr, flush=True)
        os._exit(1)  # an orderly exit would wait for the other end


def chunk_sizes(num_bytes: int) -> Iterator[int]:
    """Yield the number of bytes of each chunk."""
    for start in range(0, num_bytes, CHUNK_BYTES):
        yield min(CHUNK_BYTES, num_bytes - start)


def _pump(end: End) -> None:
    with _joined(end) as store:
        if end.rank == SENDER:
            _send(end)
            store.wait([_RECEIVED])  # this process hosts the store, and bytes may still be in transit
        else:
            _receive(end, store)


@contextmanager
def _joined(end: End) -> Generator[TCPStore]:
    """Join the group of two, in which every wait has the time limit."""
    from torch import cuda, distributed
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented, but not listed

    if end.rank != SENDER:
        _require_sender(end)
    if end.backend == "nccl":
        cuda.set_device(end.device)
    limit = timedelta(seconds=end.timeout_seconds)
    store = TCPStore(
        end.host,
        end.port,
        2,
        is_master=end.rank == SENDER,
        timeout=limit,
        wait_for_workers=False,
        master_listen_fd=end.listener,
    )
    distributed.init_process_group(end.backend, store=store, rank=end.rank, world_size=2, timeout=limit)
    yield store
    distributed.destroy_process_group()


def _require_sender(end: End) -> None:
    """Raise ConnectionError at once if the sender is not there.

    It listens before it sends the request, and the store would retry until the time limit.
    """
    try:
        socket.create_connection((end.host, end.port), timeout=end.timeout_seconds).close()
    except OSError as error:
        raise ConnectionError(f"there is no sender at {end.host} port {end.port}: {error}") from error


def _send(end: End) -> None:
    from torch import distributed

    chunk = _chunk()
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
        for size in chunk_sizes(end.num_bytes):
            _fill(pipe, chunk[:size].numpy().data)
            distributed.send(chunk[:size].to(end.device), 1)


def _receive(end: End, store: TCPStore) -> None:
    import torch
    from torch import distributed

    landed = _chunk() if end.device == "cpu" else torch.empty(CHUNK_BYTES, dtype=torch.uint8, device=end.device)
    with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as pipe:
        missing_bytes = end.num_bytes
        for size in chunk_sizes(end.num_bytes):
            distributed.recv(landed[:size], SENDER)
            view = landed[:size].cpu().numpy().data
            missing_bytes -= size
            if not missing_bytes:
                store.set(_RECEIVED, "")  # first, as the reader of the last bytes may end this process
            _drain(pipe, view)


def _chunk() -> torch.Tensor:
    import torch

    return torch.empty(CHUNK_BYTES, dtype=torch.uint8)


def _fill(pipe: BinaryIO, view: memoryview) -> None:
    while view:
        num_bytes = pipe.readinto(view)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - unbuffered files have it
        if not num_bytes:
            raise EOFError("the input ended before all bytes had come")
        view = view[num_bytes:]


def _drain(pipe: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[pipe.write(view) :]


def _end_with_parent() -> None:
    """End this process when its parent ends, which holds the standard input open until then."""
    hangup = select.poll()
    hangup.register(sys.stdin.fileno(), 0)
    hangup.poll()
    os._exit(1)


def _keep_to_loopback(host: str) -> None:
    """Make the group's own sockets listen on the loopback interface only, if the store does."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if is_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


if __name__ == "__main__":
    main()
