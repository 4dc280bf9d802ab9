"""Passes the files of an update through a directory that client and service both see; no file goes over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vigor_client.errors import SharedDirectoryError
from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.update_plan import Plan, PlannedFile


@dataclass(frozen=True, slots=True)
class SharedDirectory:
    """The service's ``--weights-root`` at the path where this process sees it, which may differ from the service's.

    If it is on the same disk as the service's staging (or state) directory, the service moves files instead of copying.
    """

    path: Path

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Write the files into a directory of this update, let the service take them, and remove what is left.

        Raises:
            SharedDirectoryError: they cannot be written.
        """
        directory = self.path / f"update-{update_id}"
        try:
            await endpoints.wire.compute(lambda: _write(directory, plan.files))
            await endpoints.take(update_id, directory.name, num_bytes=plan.num_bytes)
        finally:
            await endpoints.wire.compute(lambda: shutil.rmtree(directory, ignore_errors=True))


def _write(directory: Path, files: Sequence[PlannedFile]) -> None:
    try:
        directory.mkdir()
        for file in files:
            with (directory / file.announced.name).open("wb") as out:
                out.writelines(file.chunks())
    except OSError as error:
        raise SharedDirectoryError(f"cannot write an update to {directory}: {error.strerror}") from error
