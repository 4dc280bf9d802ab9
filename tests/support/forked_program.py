"""A call of `python` that a process of `fork_server` becomes: how it is asked for, and how it is done.

Imports little, since each interpreter that hands its program over loads it: see `hands_over`.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

MAX_REQUEST_BYTES = 1 << 18
MAX_FILES = 64
SERVER_VARIABLE = "TEST_FORK_SERVER"


def connected(address: str) -> socket.socket:
    """Return a connection to the server. What it was used to start is killed when it is closed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedProgram:
    """``arguments`` begin with ``-m``, ``-c`` or a script; ``numbers`` are those of its open files."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    numbers: Sequence[int]

    def start(self, server: socket.socket, files: Sequence[int]) -> int:
        """Have the server start it with these files, one for each number; return the number of its process."""
        socket.send_fds(server, [json.dumps(asdict(self)).encode()], files)
        return int(server.recv(MAX_REQUEST_BYTES))

    @classmethod
    def parse(cls, request: bytes) -> ForkedProgram:
        """Read what ``start`` sent."""
        return cls(**json.loads(request))

    def run(self, files: Sequence[int]) -> NoReturn:
        """Turn this process into it, and end. What was loaded before is not taken apart: that would take a second."""
        self._open(files)
        os.chdir(self.directory)
        os.environ.clear()
        os.environ.update(self.environment)
        _set_number_of_threads()
        Path("/proc/self/comm").write_text(self._name)
        code = self._exit_code()
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] - as the interpreter ends
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code)

    @property
    def _name(self) -> str:
        kind, *rest = self.arguments
        return rest[0].rpartition(".")[2] if kind == "-m" else Path(kind).name

    def _open(self, files: Sequence[int]) -> None:
        import fcntl

        above = max(self.numbers) + 1
        aside = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]
        for file in files:
            os.close(file)
        for file, number in zip(aside, self.numbers, strict=True):
            os.dup2(file, number)
            os.close(file)
        name = self.environment.get("PYTHONIOENCODING")
        sys.stdin = open(0, encoding=name, closefd=False)  # noqa: SIM115 - the streams of before know other files
        sys.stdout = open(1, "w", encoding=name, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=name, errors="backslashreplace", closefd=False)  # noqa: SIM115

    def _exit_code(self) -> int:
        try:
            self._execute()
        except SystemExit as ended:
            if ended.code is None or isinstance(ended.code, int):
                return ended.code or 0
            print(ended.code, file=sys.stderr)
            return 1
        except BaseException as error:  # noqa: BLE001 - it ends with any
            sys.excepthook(type(error), error, error.__traceback__)
            return 1
        return 0

    def _execute(self) -> None:
        import runpy

        kind, *rest = self.arguments
        if kind == "-m":
            sys.argv = rest
            for name in (rest[0], f"{rest[0]}.__main__"):  # which may have been loaded
                sys.modules.pop(name, None)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(rest[0], main.__dict__)  # noqa: S102 - as the interpreter does
        else:
            sys.argv = list(self.arguments)
            sys.path.insert(0, str(Path(kind).absolute().parent))
            runpy.run_path(kind, run_name="__main__")


def _set_number_of_threads() -> None:
    """Give torch what it read when it was imported."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
