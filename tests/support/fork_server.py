"""Forks processes of itself, which has the libraries of all programs loaded: `python -m tests.support.fork_server`.

Its standard input is a socket that listens. Each connection asks for one `ForkedProgram` and is told the number of its
process and, at its end, the exit code. The server ends with the last connection.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forked_program import MAX_FILES, MAX_REQUEST_BYTES, ForkedProgram


@dataclass
class ForkServer:
    """``processes``: by the file that tells of its end, the number of each process and the connection that asked."""

    listener: socket.socket
    connections: dict[int, socket.socket] = field(default_factory=dict)
    processes: dict[int, tuple[int, socket.socket]] = field(default_factory=dict)

    def serve(self) -> tuple[ForkedProgram, list[int]] | None:
        """Serve until the last connection ends. In each new process, return the program that it becomes."""
        while True:
            poll = select.poll()
            for file in (self.listener.fileno(), *self.connections, *self.processes):
                poll.register(file, select.POLLIN)
            file = poll.poll()[0][0]  # one at a time: a number may mean another file once one was closed
            if file == self.listener.fileno():
                connection = self.listener.accept()[0]
                self.connections[connection.fileno()] = connection
            elif file in self.processes:
                self._tell_the_end(file)
            elif program := self._hear(self.connections[file]):
                return program
            if not self.connections:
                return None

    def _hear(self, connection: socket.socket) -> tuple[ForkedProgram, list[int]] | None:
        request, files, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, MAX_FILES)
        if not request:
            self._forget(connection)
            return None
        pid = os.fork()
        if pid == 0:
            self._close_files_of_server()
            return ForkedProgram.parse(request), files
        for file in files:
            os.close(file)
        self.processes[os.pidfd_open(pid)] = (pid, connection)
        _tell(connection, pid)
        return None

    def _forget(self, connection: socket.socket) -> None:
        del self.connections[connection.fileno()]
        for file, (pid, starter) in list(self.processes.items()):
            if starter is connection:
                os.kill(pid, signal.SIGKILL)
                self._tell_the_end(file)
        connection.close()

    def _tell_the_end(self, file: int) -> None:
        pid, connection = self.processes.pop(file)
        os.close(file)
        _, status = os.waitpid(pid, 0)
        _tell(connection, os.waitstatus_to_exitcode(status))

    def _close_files_of_server(self) -> None:
        """Close in a new process what belongs to the server."""
        self.listener.close()
        for connection in self.connections.values():
            connection.close()
        for file in self.processes:
            os.close(file)


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # the process that asked has ended
        connection.send(b"%d" % number)


def main() -> None:
    """Serve; a new process becomes its program and never returns."""
    import tests.support.preload  # noqa: F401 - a connection that comes meanwhile waits

    listener = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    address = Path(listener.getsockname())
    if forked := ForkServer(listener).serve():
        program, files = forked
        program.run(files)
    address.unlink()
    os._exit(0)  # an orderly end takes a second


if __name__ == "__main__":
    main()
