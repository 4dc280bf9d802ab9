"""An update that is ready to be sent; each of its files is generated as a stream whenever it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vigor_client.errors import TensorsRefusedError
from vigor_client.schemas.weights import UpdateEncoding, UpdateFile, UpdateRequest
from vigor_client.transport.wire import Body
from vigor_client.weight_format.digest import announce

Chunks = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to send: its name, size and checksum, and its bytes."""

    announced: UpdateFile
    chunks: Chunks

    def body(self) -> Body:
        """Return the request's body."""
        return Body("application/octet-stream", self.announced.num_bytes, self.chunks)


@dataclass(frozen=True, slots=True)
class Plan:
    """An update. The encodings ``partial`` and ``delta`` have a base; a delta also has its ``changes`` by tensor.

    ``weight_digest`` is the digest of the updated model; None if only the service can compute it.
    """

    weight_digest: str | None
    files: list[PlannedFile]
    encoding: UpdateEncoding = "full"
    changes: Mapping[str, bytes] | None = None
    base_version: int | None = None
    base_digest: str | None = None

    @property
    def num_bytes(self) -> int:
        """Total size of all files."""
        return sum(file.announced.num_bytes for file in self.files)

    def request(self, weight_version: int) -> UpdateRequest:
        """Return the request that opens the update."""
        return UpdateRequest(
            weight_version=weight_version,
            base_version=self.base_version,
            base_digest=self.base_digest,
            encoding=self.encoding,
            files=[file.announced for file in self.files],
        )


def planned_file(name: str, chunks: Chunks) -> PlannedFile:
    """Return a file to send; its chunks are read once to compute the announcement."""
    return PlannedFile(announce(name, chunks()), chunks)


def refuse(faults: Mapping[str, str]) -> None:
    """Raise TensorsRefusedError if there are any faults."""
    if faults:
        raise TensorsRefusedError(faults)
