"""Loaded by each interpreter that has this directory in its PYTHONPATH, before its program.

It hands the program over to a process of `fork_server`, which has the libraries loaded, passes signals on to it, and
ends as it does. An interpreter that is called with other flags than these runs its program itself.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def _hand_over(address: str) -> None:
    from tests.support.forked_program import ForkedProgram, connected

    arguments = sys.orig_argv[1:]
    while arguments and arguments[0] in ("-P", "-u"):
        del arguments[0]
    if not arguments or (arguments[0][0] == "-" and arguments[0] not in ("-m", "-c")):
        return
    numbers = list(_inherited())
    server = connected(address)
    program = ForkedProgram(
        arguments=arguments, environment=dict(os.environ), directory=str(Path.cwd()), numbers=numbers
    )
    process = program.start(server, numbers)
    for number in numbers:
        os.close(number)  # a pipe ends when the program closes it: this process must not hold it open
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(process, number))
    code = int(server.recv(16))
    if code < 0:
        with suppress(OSError):  # SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _inherited() -> Iterator[int]:
    """Yield the numbers of open files that this process was started with."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            if os.get_inheritable(int(link.name)):
                yield int(link.name)


if "TEST_FORK_SERVER" in os.environ:
    _hand_over(os.environ["TEST_FORK_SERVER"])
