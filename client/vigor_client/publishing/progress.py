"""The progress of a publication: its phase, and how many of its bytes are done. Knows nothing about how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

from vigor_client.weight_format.update_plan import Plan, PlannedFile

PublishPhase = Literal["comparing", "hashing", "sending", "verifying"]


@dataclass(frozen=True, slots=True)
class PublishProgress:
    """The progress of ``publish_weights``.

    The phases are ``comparing`` (tensors are compared with what the service has), ``hashing`` (checksums are computed),
    ``sending``, and ``verifying`` (the service verifies the update and swaps the weights). ``done_bytes`` of
    ``total_bytes`` are finished in this phase; ``total_bytes`` is None where the bytes of a phase are not counted.
    """

    phase: PublishPhase
    done_bytes: int = 0
    total_bytes: int | None = None


OnProgress = Callable[[PublishProgress], object]


class ProgressReport:
    """Calls ``on_progress``, if there is one, when a phase begins and whenever more of its bytes are done.

    Bytes may be counted on a thread other than the one that begins phases; no two calls run at the same time.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._progress = PublishProgress("comparing")
        self._lock = Lock()

    def begin(self, phase: PublishPhase, total_bytes: int | None = None) -> None:
        """Begin a phase, at 0 bytes."""
        with self._lock:
            self._report(PublishProgress(phase, 0, total_bytes))

    def count(self, phase: PublishPhase, chunks: Iterable[bytes], start_bytes: int) -> Iterator[bytes]:
        """Yield the chunks of a file that begins at this byte of the phase; each is done when the next is requested.

        A file that is sent again counts only beyond the bytes counted before: the number never falls.
        """
        done_bytes = start_bytes
        for chunk in chunks:
            yield chunk
            done_bytes += len(chunk)
            self._advance(phase, done_bytes)

    def send(self, plan: Plan) -> Plan:
        """Begin to send; return the plan with files that count the bytes that a transport reads."""
        self.begin("sending", plan.num_bytes)
        files: list[PlannedFile] = []
        start_bytes = 0
        for file in plan.files:
            files.append(replace(file, chunks=self._counted(file, start_bytes)))
            start_bytes += file.announced.num_bytes
        return replace(plan, files=files)

    def verify(self, plan: Plan) -> None:
        """Begin to verify. All of the plan counts as sent, even if its last chunk was not counted yet."""
        self._advance("sending", plan.num_bytes)
        self.begin("verifying")

    def _counted(self, file: PlannedFile, start_bytes: int) -> Callable[[], Iterator[bytes]]:
        return lambda: self.count("sending", file.chunks(), start_bytes)

    def _advance(self, phase: PublishPhase, done_bytes: int) -> None:
        with self._lock:
            if phase == self._progress.phase and done_bytes > self._progress.done_bytes:
                self._report(replace(self._progress, done_bytes=done_bytes))

    def _report(self, progress: PublishProgress) -> None:
        self._progress = progress
        if self._on_progress is not None:
            self._on_progress(progress)
