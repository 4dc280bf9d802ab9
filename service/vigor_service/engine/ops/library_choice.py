"""Choice of the library that multiplies matrices faster on this machine, for each class of products.

The first few products of a class, which have to be computed anyway, are timed while the libraries alternate. From then
on the faster library computes all of them. The results are kept in a file for this machine, if there is a directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from vigor_service.engine.ops.json_file import replace_json

logger = logging.getLogger(__name__)

TRIES = 5
"""Number of products that each library is timed with: odd, so that the median is not a first one that compiles."""
MAX_CLASSES = 512
Product = Callable[[], Tensor]


def product_class(num_rows: int, weight_OI: Tensor) -> str:
    """Return the name of a product's class: its rows, rounded up to a power of two, the matrix's shape and layout."""
    outputs, inputs = weight_OI.shape
    layout = "T" if weight_OI.stride(0) < weight_OI.stride(1) else ""
    return f"{1 << (num_rows - 1).bit_length()}x{inputs}x{outputs}{layout}"


@dataclass(slots=True)
class _Trials:
    """Measured seconds per row of each library, and the number of trials that have begun."""

    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    num_begun: int = 0


class LibraryChoice:
    """Computes products by the faster of several libraries. Threads may share it.

    ``forced``: the library that computes everything; None: the faster one.
    """

    def __init__(self, clock_seconds: Callable[[], float] = perf_counter) -> None:
        self.forced: str | None = None
        self._clock_seconds = clock_seconds
        self._chosen: dict[str, str] = {}
        self._trials: dict[str, _Trials] = {}
        self._machine = ""
        self._file: Path | None = None
        self._lock = threading.Lock()

    def run(self, name: str, num_rows: int, libraries: Mapping[str, Product]) -> Tensor:
        """Return a product of the class of this name, by the faster library or, in a trial, by the library to time.

        ``libraries`` has the same names in each call; the first of them computes the classes that are not tried.
        """
        if self.forced is not None:
            return libraries[self.forced]()
        if (chosen := libraries.get(self._chosen.get(name, ""))) is not None:
            return chosen()
        if (trial := self._next_trial(name, libraries)) is None:
            return next(iter(libraries.values()))()
        trials, library = trial
        started = self._clock_seconds()
        product = libraries[library]()
        self._note(name, trials, library, (self._clock_seconds() - started) / num_rows)
        return product

    def _next_trial(self, name: str, libraries: Mapping[str, Product]) -> tuple[_Trials, str] | None:
        """Return the trials of a class and the library whose turn it is; None if no more classes are tried."""
        with self._lock:
            if name not in self._trials:
                if len(self._trials) >= MAX_CLASSES:
                    return None
                self._trials[name] = _Trials({library: [] for library in libraries})
            trials = self._trials[name]
            library = list(libraries)[trials.num_begun % len(libraries)]
            trials.num_begun += 1
            return trials, library

    def _note(self, name: str, trials: _Trials, library: str, seconds: float) -> None:
        with self._lock:
            trials.seconds[library].append(seconds)
            if self._chosen.get(name) in trials.seconds or min(map(len, trials.seconds.values())) < TRIES:
                return
            medians = {each: median(tried) for each, tried in trials.seconds.items()}
            self._chosen[name] = min(medians, key=medians.__getitem__)
            self._write()
        logger.debug("product_library", extra={"product": name, "library": self._chosen[name], "seconds": medians})

    def counts(self) -> dict[str, int]:
        """Return library -> number of classes that it computes."""
        return dict(sorted(Counter(self._chosen.values()).items()))

    def keep_in(self, directory: Path) -> None:
        """Read the earlier results for this machine from the directory, and store new results there.

        A file that cannot be read counts as missing; one that cannot be written is named in the log.
        """
        self._machine = machine_name()
        self._file = directory / f"{hashlib.sha256(self._machine.encode()).hexdigest()[:16]}.json"
        try:
            content = json.loads(self._file.read_text())
            if content["machine"] != self._machine:
                return
            self._chosen |= {str(name): str(library) for name, library in content["chosen"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        logger.info("product_libraries", extra={"file": str(self._file), **self.counts()})

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            replace_json(self._file, {"machine": self._machine, "chosen": self._chosen})
        except OSError as error:
            logger.info("cannot store which libraries are faster: %s", error)
            self._file = None


def machine_name() -> str:
    """Return what a choice depends on: the processor, its vector extensions, threads, and versions of the libraries."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {capability}, {torch.get_num_threads()} threads, {torch.__config__.show()}"


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as Linux has it, else as Python does."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
