"""One end of a broadcast in a process of its own, which is fed or read through a pipe and can be killed.

Only a process can be ended from outside. In the caller's process, torch.distributed would wait without a limit for a
silent listener, and would end the whole process when a message is longer than expected. The program is
``broadcast_worker``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from vigor_client.errors import BroadcastError
from vigor_client.schemas.weights import BroadcastBackend

if TYPE_CHECKING:
    from io import BufferedReader, BufferedWriter

SENDER, RECEIVER = 0, 1
_PIPE_BYTES = 1 << 20
_END_SECONDS = 30.0
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One of the two ranks. ``listener`` is the file descriptor of the sender's open socket at host and port."""

    rank: int
    backend: BroadcastBackend
    host: str
    port: int
    num_bytes: int
    timeout_seconds: float
    device: str = "cpu"
    listener: int | None = None

    @classmethod
    def parse(cls, text: str) -> End:
        """Return the end that ``command`` wrote as text."""
        return cls(**json.loads(text))

    @property
    def command(self) -> list[str]:
        """Return the command that runs this end. ``-P`` keeps files of the current directory from shadowing modules."""
        return [sys.executable, "-P", "-m", "vigor_client.weight_format.broadcast_worker", json.dumps(asdict(self))]


class BroadcastProcess:
    """The running process of one end. Killing it releases a thread that waits for its pipe.

    After its pipe has ended, or after a kill, the process is awaited for at most ``end_seconds``.
    """

    def __init__(self, end: End, *, end_seconds: float = _END_SECONDS) -> None:
        self._end_seconds = end_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it; an unread pipe would fill up
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            end.command,
            stdin=subprocess.PIPE,  # the process ends when this one is gone
            stdout=subprocess.PIPE if end.rank == RECEIVER else subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=() if end.listener is None else (end.listener,),
            pipesize=_PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def send(self, chunks: Iterable[bytes]) -> None:
        """Write all chunks to the process, which then runs until the other end has them. A failure ends the process.

        Raises:
            BroadcastError: the process ended early.
        """
        pipe = cast("BufferedWriter", self._process.stdin)
        try:
            for chunk in chunks:
                pipe.write(chunk)
            pipe.flush()
        except BrokenPipeError as error:
            raise BroadcastError(self._reason()) from error
        except BaseException:
            self.kill()
            raise

    def read(self, num_bytes: int) -> bytes:
        """Return the bytes received, at most ``num_bytes``.

        Raises:
            BroadcastError: the process ended, and no bytes are left.
        """
        data = cast("BufferedReader", self._process.stdout).read1(num_bytes)
        if not data:
            raise BroadcastError(self._reason())
        return data

    def fault(self) -> str | None:
        """Return why the process failed; None while it runs or if it did not fail."""
        return self._reason() if self._process.poll() else None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process and release its resources. A process that the system cannot end, as in a driver, is left."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._end_seconds)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # closing would write the rest of the buffer to a process that has ended
                if pipe is not None:
                    pipe.close()

    def _reason(self) -> str:
        """Return the last line that the process wrote before it ended, or say that it has not ended."""
        try:
            code = self._process.wait(self._end_seconds)
        except subprocess.TimeoutExpired:
            return f"the process closed its pipe, and did not end within {self._end_seconds:g} s"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"the process ended with {code}")[:_MAX_REASON_CHARACTERS]
