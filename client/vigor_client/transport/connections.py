"""The connections of one client: a separate pool for each process and each event loop that uses it.

A forked process that keeps using its parent's sockets reads answers to its parent's requests, and a pool that outlives
its event loop hands out connections that cannot be awaited. So each process, and each loop, opens a pool of its own and
does not touch those of others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable

import httpx

_Owner = tuple[int, asyncio.AbstractEventLoop]


class Connections:
    """Blocking pools, one for each process. May be shared between threads.

    Args:
        open_pool: opens a pool. It is called once in each process.
    """

    def __init__(self, open_pool: Callable[[], httpx.Client]) -> None:
        self._open_pool = open_pool
        self._pools: dict[int, httpx.Client] = {}
        self._is_closed = False

    def pool(self) -> httpx.Client:
        """Return the pool of this process.

        Raises:
            RuntimeError: the client is closed.
        """
        _refuse_closed(self._is_closed)
        process = os.getpid()
        if process not in self._pools:
            # No lock, which a fork could leave locked: if two threads open a pool at the same time, the first is kept.
            self._pools.setdefault(process, self._open_pool())
        return self._pools[process]

    def close(self) -> None:
        """Close the pool of this process; other processes close their own."""
        self._is_closed = True
        if (pool := self._pools.pop(os.getpid(), None)) is not None:
            pool.close()


class AsyncConnections:
    """Asyncio pools, one for each process and event loop; ``asyncio.run`` closes the pool of its loop when it ends.

    Args:
        open_pool: opens a pool. It is called once for each loop of each process.
    """

    def __init__(self, open_pool: Callable[[], httpx.AsyncClient]) -> None:
        self._open_pool = open_pool
        self._pools: dict[_Owner, httpx.AsyncClient] = {}
        self._guards: dict[_Owner, AsyncGenerator[None]] = {}
        self._is_closed = False

    async def pool(self) -> httpx.AsyncClient:
        """Return the pool of the running loop.

        Raises:
            RuntimeError: the client is closed.
        """
        _refuse_closed(self._is_closed)
        owner = _owner()
        if owner not in self._pools:
            self._forget_ended_loops()
            self._pools[owner] = self._open_pool()
            self._guards[owner] = self._closed_with_its_loop(owner)
            await anext(self._guards[owner])
        return self._pools[owner]

    async def aclose(self) -> None:
        """Close the pool of the running loop; loops that ended have closed theirs."""
        self._is_closed = True
        if (guard := self._guards.get(_owner())) is not None:
            await guard.aclose()

    def __len__(self) -> int:
        return len(self._pools)

    def _forget_ended_loops(self) -> None:
        """Drop pools of loops that ended without closing their generators; ``asyncio.run`` closes them."""
        for owner in [owner for owner in self._pools if owner[1].is_closed()]:
            del self._pools[owner], self._guards[owner]

    async def _closed_with_its_loop(self, owner: _Owner) -> AsyncGenerator[None]:
        """Keep the pool until this generator is closed, which a loop does to all of its generators before it ends."""
        try:
            yield
        finally:
            self._guards.pop(owner)
            await self._pools.pop(owner).aclose()


def _owner() -> _Owner:
    return os.getpid(), asyncio.get_running_loop()


def _refuse_closed(is_closed: bool) -> None:
    if is_closed:
        raise RuntimeError("the client is closed; create another one")
