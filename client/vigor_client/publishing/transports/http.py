"""Sends the files of an update as bodies of HTTP requests, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.update_plan import Plan


@dataclass(frozen=True, slots=True)
class HttpUpload:
    """Sends one PUT per file."""

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Send the planned files to an open update.

        Raises:
            ProblemError: the service refused a file.
            TransportError: the service could not be reached.
        """
        for file in plan.files:
            await endpoints.put_file(update_id, file.announced.name, file.body())
