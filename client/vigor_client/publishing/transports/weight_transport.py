"""What publishing asks of a transport."""

from __future__ import annotations

from typing import Protocol

from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.update_plan import Plan


class WeightTransport(Protocol):
    """How the files of an update reach the service: over HTTP, through a shared directory, or as a broadcast."""

    async def send(self, endpoints: Endpoints, update_id: str, plan: Plan) -> None:
        """Bring the planned files to the update of this name, which is open.

        Raises:
            VigorError: they cannot go this way, or the service refused one; the caller drops the update.
        """
        ...
