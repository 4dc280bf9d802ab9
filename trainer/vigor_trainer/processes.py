"""A run may have several processes, but one service call: one process makes it, all of them share how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from vigor_trainer.errors import ScoringFailedError

Result = TypeVar("Result")


def on_main_process(work: Callable[[], Result]) -> Result:
    """Return `work()` of the main process, in every process. All processes must call it.

    Raises:
        ScoringFailedError: in the others, when the main process raised; there its own error goes on. Nobody is left
            waiting in a collective operation.
    """
    state = PartialState()
    outcome: list[tuple[Result] | None] = [None]
    try:
        if state.is_main_process:
            outcome[0] = (work(),)
    finally:
        broadcast_object_list(cast("list[object]", outcome))
    if outcome[0] is None:
        raise ScoringFailedError(f"process {state.process_index} stops: the main process failed, see its message")
    return outcome[0][0]
