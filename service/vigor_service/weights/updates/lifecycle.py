"""The state of a weight update, and the allowed transitions.

This is the only place that stores the state of an update: responses, metrics, log lines and refusals all read it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import StrEnum

from vigor_client.schemas.weights import UpdateState

_logger = logging.getLogger(__name__)


class State(StrEnum):
    """State of an update. The last four are final."""

    OPENING = "opening"
    """Its staging directory is being created."""
    RECEIVING = "receiving"
    """Files may be sent."""
    VERIFYING = "verifying"
    """All files have arrived; they are verified, then stored for a restart."""
    APPLYING = "applying"
    """It waits for the work ahead of it in the queue, and is then swapped in."""
    COMMITTED = "committed"
    """Its weights were swapped in."""
    REFUSED = "refused"
    """It could not be opened, failed verification, could not be stored, or its swap failed."""
    DROPPED = "dropped"
    """A client dropped it."""
    EXPIRED = "expired"
    """No request for it arrived within the timeout."""


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.OPENING: frozenset({State.RECEIVING, State.REFUSED, State.DROPPED}),
    State.RECEIVING: frozenset({State.VERIFYING, State.DROPPED, State.EXPIRED}),
    State.VERIFYING: frozenset({State.APPLYING, State.REFUSED}),
    State.APPLYING: frozenset({State.COMMITTED, State.REFUSED}),
    State.COMMITTED: frozenset(),
    State.REFUSED: frozenset(),
    State.DROPPED: frozenset(),
    State.EXPIRED: frozenset(),
}

_ON_THE_WIRE: Mapping[State, UpdateState] = {
    State.OPENING: "receiving",
    State.RECEIVING: "receiving",
    State.VERIFYING: "verifying",
    State.APPLYING: "applying",
    State.COMMITTED: "committed",
}


class IllegalTransitionError(Exception):
    """An update was to enter a state that may not follow its current state."""


class Lifecycle:
    """The state of one update. ``on_change`` is called whenever a state is entered, including the first one."""

    def __init__(self, weight_version: int, *, on_change: Callable[[Lifecycle], None]) -> None:
        self._weight_version = weight_version
        self._on_change = on_change
        self._state = State.OPENING
        on_change(self)

    @property
    def state(self) -> State:
        """The state that the update is in."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether another state may follow. While an update is open, no other one can be opened."""
        return bool(TRANSITIONS[self._state])

    @property
    def is_gone(self) -> bool:
        """Whether the update ended without being committed."""
        return not self.is_open and self._state is not State.COMMITTED

    @property
    def on_the_wire(self) -> UpdateState:
        """The state's name in an API status. An update that is gone has no status."""
        return _ON_THE_WIRE[self._state]

    def enter(self, state: State) -> None:
        """Change the state.

        Raises:
            IllegalTransitionError: ``state`` may not follow the current state, which stays.
        """
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransitionError(
                f"the update to version {self._weight_version} is {self._state} and cannot become {state}"
            )
        change = {"version": self._weight_version, "from": str(self._state), "to": str(state)}
        _logger.debug("weight_update_state", extra=change)
        self._state = state
        self._on_change(self)
