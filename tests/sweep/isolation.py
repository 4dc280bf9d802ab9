"""Runs a function in a process of its own, for a bounded time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class DiedError(Exception):
    """The process ended without a result, or did not end in time."""


def preload(module: str) -> None:
    """Import once, before the first process, what each would need seconds for."""
    multiprocessing.set_forkserver_preload([module])


def in_own_process(function: Callable[[Argument], Result], argument: Argument, timeout_seconds: float) -> Result:
    """Return ``function(argument)``, both of which can be pickled.

    Raises:
        DiedError: there is no result.
    """
    context = multiprocessing.get_context("forkserver")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, argument, sending), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(timeout_seconds):
            raise DiedError(f"no result after {timeout_seconds:g} s")
        return receiving.recv()
    except EOFError as error:
        process.join()
        raise DiedError(f"the process ended with {process.exitcode}") from error
    finally:
        process.kill()
        process.join()


def _send(function: Callable[[Argument], Result], argument: Argument, sending: Connection) -> None:
    sending.send(function(argument))
