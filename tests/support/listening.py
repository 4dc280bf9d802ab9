"""Where a process listens, with all that it has started."""

from __future__ import annotations

from typing import cast

import psutil

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def listening_hosts(pid: int) -> list[str]:
    """Return the address of every TCP socket on which the process or one below it listens."""
    own = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    found = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.pid in own]
    return [cast("tuple[str, int]", each.laddr)[0] for each in found]
