"""The faults of an update: all are counted, and the first ones are kept with their places."""

from __future__ import annotations

from collections.abc import Iterable

from vigor_client.schemas.problems import FieldError
from vigor_service.errors import MAX_LISTED_ERRORS, InvalidRequestError, invalid_request

_MAX_NAME_CHARACTERS = 256
_MAX_MESSAGE_CHARACTERS = 1024


class Faults:
    """Faults of one update, in the order in which they were found."""

    def __init__(self) -> None:
        self._kept: list[FieldError] = []
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, message: str, *place: str | int) -> None:
        """Add a fault at a place."""
        self._count += 1
        if self._count <= MAX_LISTED_ERRORS:
            loc = [part if isinstance(part, int) else part[:_MAX_NAME_CHARACTERS] for part in place]
            self._kept.append(FieldError(loc=loc, msg=message[:_MAX_MESSAGE_CHARACTERS]))

    def add_all(self, message: str, *place: str, names: Iterable[str]) -> None:
        """Add the same fault for several names at a place."""
        for name in names:
            self.add(message, *place, name)

    def refusal(self) -> InvalidRequestError:
        """Return the error that refuses the update."""
        consequence = "nothing was applied and the update is dropped"
        return invalid_request(self._kept, consequence=consequence, count=self._count)
