"""Every pair of states: the legal transitions happen, every other one is refused by the names of both."""

from __future__ import annotations

from itertools import product

import pytest

from vigor_client.schemas.weights import UpdateStatus
from vigor_service.weights.updates.lifecycle import IllegalTransitionError, Lifecycle, State

WAYS: dict[State, tuple[State, ...]] = {
    State.OPENING: (),
    State.RECEIVING: (State.RECEIVING,),
    State.VERIFYING: (State.RECEIVING, State.VERIFYING),
    State.APPLYING: (State.RECEIVING, State.VERIFYING, State.APPLYING),
    State.COMMITTED: (State.RECEIVING, State.VERIFYING, State.APPLYING, State.COMMITTED),
    State.REFUSED: (State.REFUSED,),
    State.DROPPED: (State.DROPPED,),
    State.EXPIRED: (State.RECEIVING, State.EXPIRED),
}
"""Which states are entered, one after the other, to get to a state."""

LEGAL = {
    (State.OPENING, State.RECEIVING),
    (State.OPENING, State.REFUSED),
    (State.OPENING, State.DROPPED),
    (State.RECEIVING, State.VERIFYING),
    (State.RECEIVING, State.DROPPED),
    (State.RECEIVING, State.EXPIRED),
    (State.VERIFYING, State.APPLYING),
    (State.VERIFYING, State.REFUSED),
    (State.APPLYING, State.COMMITTED),
    (State.APPLYING, State.REFUSED),
}


def in_state(state: State, changes: list[State]) -> Lifecycle:
    lifecycle = Lifecycle(7, on_change=lambda changed: changes.append(changed.state))
    for step in WAYS[state]:
        lifecycle.enter(step)
    assert lifecycle.state is state
    assert changes == [State.OPENING, *WAYS[state]]
    return lifecycle


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_a_transition_happens_if_it_is_legal_and_is_refused_by_name_if_not(before: State, after: State) -> None:
    changes: list[State] = []
    lifecycle = in_state(before, changes)
    if (before, after) in LEGAL:
        lifecycle.enter(after)
        assert lifecycle.state is after
        assert changes[-1] is after
        return
    told = len(changes)
    with pytest.raises(IllegalTransitionError, match=f"version 7 is {before} and cannot become {after}"):
        lifecycle.enter(after)
    assert lifecycle.state is before
    assert len(changes) == told


@pytest.mark.parametrize("state", State)
def test_an_update_is_open_gone_or_committed(state: State) -> None:
    lifecycle = in_state(state, [])
    is_open = any(before is state for before, _ in LEGAL)
    assert lifecycle.is_open is is_open
    assert lifecycle.is_gone is (not is_open and state is not State.COMMITTED)


@pytest.mark.parametrize("state", State)
def test_a_state_has_a_name_on_the_wire_unless_the_update_is_gone(state: State) -> None:
    lifecycle = in_state(state, [])
    if lifecycle.is_gone:
        with pytest.raises(KeyError):
            _ = lifecycle.on_the_wire
        return
    status = UpdateStatus(update_id="u", weight_version=7, state=lifecycle.on_the_wire)
    assert status.state == ("receiving" if state is State.OPENING else state)
