"""An update that is ready to be sent: its files, made anew as a stream each time one is sent."""

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
    """One file that is to be sent: its name, size and checksum, and its bytes."""

    announced: UpdateFile
    chunks: Chunks

    def body(self) -> Body:
        """Return the request's body."""
        return Body("application/octet-stream", self.announced.num_bytes, self.chunks)


@dataclass(frozen=True, slots=True)
class Plan:
    """An update. ``partial`` and ``delta`` have a base; a delta has its ``changes`` by tensor, too.

    ``weight_digest`` is that of the model with it; None where only the service can compute it.
    """

    weight_digest: str | None
    files: list[PlannedFile]
    encoding: UpdateEncoding = "full"
    changes: Mapping[str, bytes] | None = None
    base_version: int | None = None
    base_digest: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(file.announced.num_bytes for file in self.files)

    def request(self, weight_version: int) -> UpdateRequest:
        """Return what opens the update."""
        return UpdateRequest(
            weight_version=weight_version,
            base_version=self.base_version,
            base_digest=self.base_digest,
            encoding=self.encoding,
            files=[file.announced for file in self.files],
        )


def planned_file(name: str, chunks: Chunks) -> PlannedFile:
    """Read the chunks once to announce a file."""
    return PlannedFile(announce(name, chunks()), chunks)


def refuse(faults: Mapping[str, str]) -> None:
    """Raise TensorsRefusedError if there are any."""
    if faults:
        raise TensorsRefusedError(faults)
