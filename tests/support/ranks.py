"""Processes on this machine that are the ranks of one engine."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from vigor_service.engine.sharding.ranks import Ranks, join_ranks

TIMEOUT_SECONDS = 60.0
"""After which a collective ends to which a rank did not come."""
ANSWER_SECONDS = 240.0

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload([__name__, "transformers.models.auto.modeling_auto", "tests.support.tiny_models"])


class RankFailedError(AssertionError):
    """What a rank raised."""


class RankProcesses:
    """Ranks that wait for what to run."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:  # noqa: ANN401
        """Return ``function(ranks, *args)`` of every rank; the function is that of a module.

        Raises:
            RankFailedError: a rank raised, or did not answer.
        """
        for connection in self._connections:
            connection.send((function, args))
        return [_answer(connection) for connection in self._connections]


@contextmanager
def rank_processes(
    directory: Path, size: int = 2, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Generator[RankProcesses]:
    """Start ranks that meet in a file of this directory; end them afterwards."""
    pairs = [_FORKING.Pipe() for _ in range(size)]
    processes = [
        _FORKING.Process(target=_serve, args=(rank, size, directory / "store", theirs, timeout_seconds), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        yield RankProcesses([ours for ours, _ in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(connection: Connection) -> Any:  # noqa: ANN401
    if not connection.poll(ANSWER_SECONDS):
        raise RankFailedError(f"no answer after {ANSWER_SECONDS:g} s")
    result, error = connection.recv()
    if error is not None:
        raise RankFailedError(error)
    return result


def _serve(rank: int, size: int, store: Path, connection: Connection, timeout_seconds: float) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks(
        rank, size, address=f"file://{store}", device=torch.device("cpu"), timeout_seconds=timeout_seconds
    )
    while True:
        function, args = connection.recv()
        connection.send(_result(function, ranks, args))


def _result(function: Callable[..., Any], ranks: Ranks, args: tuple[Any, ...]) -> tuple[Any, str | None]:
    try:
        return function(ranks, *args), None
    except Exception as error:  # noqa: BLE001 - the test raises it
        return None, "".join(traceback.format_exception(error))
