"""Two hosts on one machine: network namespaces with a link between them that can be cut. Needs root."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
OWN_RAY_DIRECTORY = ["sh", "-c", 'mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec "$@"', "sh"]
"""Runs a command with a directory for Ray of its own, as on a host of its own; within a mount namespace."""
_SECONDS = 30.0
_WIRE = "wire"  # the device at both ends of the link


@dataclass(frozen=True)
class Host:
    """A network namespace with an address on the link."""

    name: str
    address: str

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this host: what this thread opens and starts is there until the block ends."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(Path("/run/netns") / self.name)
            yield
        finally:
            _enter(Path(f"/proc/self/fd/{before}"))
            os.close(before)


@dataclass(frozen=True)
class TwoHosts:
    """Two hosts, and a link between them."""

    first: Host
    second: Host

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Have nothing pass between the hosts until the block ends."""
        _run("ip", "-n", self.second.name, "link", "set", _WIRE, "down")
        try:
            yield
        finally:
            _run("ip", "-n", self.second.name, "link", "set", _WIRE, "up")


def why_not_possible() -> str | None:
    """Return what is missing for two hosts, if anything is."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and ip"
    probe = f"vigor-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True, timeout=_SECONDS).returncode:
        return "network namespaces are not allowed here"
    _run("ip", "netns", "delete", probe)
    return None


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Yield two hosts with a link between them."""
    first, second = (Host(f"vigor-{os.getpid()}-{number}", f"10.77.0.{number}") for number in (1, 2))
    with ExitStack() as stack:
        for host in (first, second):
            _run("ip", "netns", "add", host.name)
            stack.callback(_run, "ip", "netns", "delete", host.name)
        _run(*f"ip -n {first.name} link add name {_WIRE} type veth peer name {_WIRE} netns {second.name}".split())
        for host in (first, second):
            _run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", _WIRE)
            for device in ("lo", _WIRE):
                _run("ip", "-n", host.name, "link", "set", device, "up")
        yield TwoHosts(first, second)


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=_SECONDS, capture_output=True)
