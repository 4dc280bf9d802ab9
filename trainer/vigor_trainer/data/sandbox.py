"""Runs an untrusted Python program in a fresh interpreter, with limits, and kills it with all processes it started.

An audit hook, which cannot be removed, keeps the interpreter from starting processes, reaching the network, changing
files, and reading files other than its own libraries. Where the system allows it, Linux namespaces also cut the program
off from the network and end all of its processes with it. This is made for programs that a policy writes, not for an
attacker who knows it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ENVIRONMENT = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""The whole environment of a program."""

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child=SIGKILL")
PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one run."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 2**30  # of address space
    output_bytes: int = 2**20
    num_processes: int = 64  # of the user, threads included; not enforced for root: see the audit hook


_FIRST = """
import resource, sys, sysconfig
def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
limit(resource.RLIMIT_CPU, {cpu_seconds})
limit(resource.RLIMIT_AS, {memory_bytes})
limit(resource.RLIMIT_FSIZE, {output_bytes})
limit(resource.RLIMIT_NPROC, {num_processes})
limit(resource.RLIMIT_CORE, 0)
def guard():
    import os
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    libraries = {{*sysconfig.get_paths().values(), sys.base_prefix, *packages}}
    roots = tuple(os.path.realpath(path) + os.sep for path in libraries)
    devices = ("/dev/null", "/dev/urandom")
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    modules = {{"_posixsubprocess", "_ctypes", "_testcapi", "_xxsubinterpreters", "_interpreters"}}
    refused = (
        "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.startfile", "os.remove",
        "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
        "os.lchown", "os.utime", "os.setxattr", "os.removexattr", "os.chdir", "subprocess.", "socket.", "ctypes.",
        "resource.", "signal.", "shutil.", "pty.", "sqlite3.", "tempfile.",
    )
    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & changes or isinstance(path, int):
                raise PermissionError("this program may not change files")
            place = realpath(fsdecode(fspath(path)))
            if not place.startswith(roots) and place not in devices:
                raise PermissionError("this program may only read its libraries")
        elif event == "import" and arguments[0] in modules:
            raise ImportError(f"this program may not import {{arguments[0]}}")
        elif event.startswith(refused):
            raise PermissionError(f"this program may not use {{event}}")
    sys.addaudithook(hook)
"""

_THEN_STATEMENTS = """
def run(program, tests):
    import os
    result, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    token = sys.stdin.readline
    guard()
    names = {{"__name__": "__main__"}}
    exec(compile(program, "program", "exec"), names)
    exec(compile(tests, "tests", "exec"), names)
    os.write(result, token().encode())
run({program!r}, {tests!r})
"""

_THEN_PROGRAM = """
guard()
exec(compile({program!r}, "program", "exec"), {{"__name__": "__main__"}})
"""


def passes_statements(program: str, statements: str, limits: Limits = Limits()) -> bool:
    """Return whether these statements, such as asserts, run to their end when appended to the program.

    A program that ends itself earlier has not passed, whatever its exit code. Its output does not count, and it has
    no input. A program that finds and writes the marker which signals a pass would be counted as passing.
    """
    token = os.urandom(16).hex() + "\n"
    output = _run(_THEN_STATEMENTS.format(program=program, tests=statements), token, limits)
    return output == token.encode()


def output_of(program: str, stdin: str, limits: Limits = Limits()) -> bytes | None:
    """Return a program's standard output; None if it fails or exceeds a limit."""
    return _run(_THEN_PROGRAM.format(program=program), stdin, limits)


def _run(body: str, stdin: str, limits: Limits) -> bytes | None:
    with TemporaryDirectory(prefix="vigor-program-") as directory:
        script, output = Path(directory) / "script.py", Path(directory) / "output"
        given = Path(directory) / "input"
        script.write_text(_FIRST.format(**asdict(limits)) + body, encoding="utf-8")
        given.write_text(stdin, encoding="utf-8")
        with output.open("wb") as sink, given.open("rb") as source:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [*_namespaces(), sys.executable, "-I", "-B", str(script)],
                stdin=source,
                stdout=sink,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                env=ENVIRONMENT,
                start_new_session=True,
            )
            try:
                exit_code = process.wait(limits.wall_seconds)
            except subprocess.TimeoutExpired:
                exit_code = None
            finally:
                _kill(process)
        return output.read_bytes() if exit_code == 0 else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that remains of its group."""
    with suppress(ProcessLookupError):  # all have already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _namespaces() -> tuple[str, ...]:
    """Return the command that runs a program in its own network and process namespaces; empty if not allowed."""
    if shutil.which(NAMESPACES[0]) is None:
        return ()
    try:
        probe = subprocess.run(  # noqa: S603 - a fixed command
            [*NAMESPACES, "true"], capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return NAMESPACES if probe.returncode == 0 else ()
