"""The interface of a transport."""

from __future__ import annotations

from typing import Protocol

from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.update_plan import Plan


class WeightTransport(Protocol):
    """How the files of an update reach the service: over HTTP, through a shared directory, or as a broadcast."""

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Send the planned files to the open update of this name.

        Raises:
            VigorError: the transport cannot carry the files, or the service refused one; the caller drops the update.
        """
        ...
