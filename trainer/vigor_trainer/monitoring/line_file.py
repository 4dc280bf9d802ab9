"""A file of JSON lines that a run appends to, and that a resumed run continues without gaps or doubles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a run goes on: at ``step``, with an evaluation if it ``evaluates_first``."""

    step: int
    evaluates_first: bool = False

    def keeps(self, line: Mapping[str, Any]) -> bool:
        """Whether the round of this line will not be repeated.

        Repeated are rounds of later steps, and those for training that begin at this one. An evaluation after this
        step stays, unless the run begins with another.
        """
        return line["step"] < self.step or (
            line["step"] == self.step and line["mode"] == "eval" and not self.evaluates_first
        )


class LineFile:
    """Appends lines to a file, each visible as soon as it is written.

    The first one replaces the file of an earlier run, so that a run that cannot begin changes nothing. A resumed run
    keeps the lines of rounds that it does not repeat.
    """

    def __init__(self, path: Path, resumption: Resumption | None = None) -> None:
        self._path = path
        self._resumption = resumption
        self._has_begun = False

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write these lines with one call, so that a reader sees whole ones but for the last."""
        if not self._has_begun:
            self._begin()
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_text, lines)))

    def _begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = self._path.with_name(f"{self._path.name}.partial")
        with rewritten.open("w", encoding="utf-8") as file:
            if self._resumption is not None:
                file.writelines(_text(line) for _, line in read_lines(self._path) if self._resumption.keeps(line))
        rewritten.replace(self._path)
        self._has_begun = True


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the fields of each line so far; a last line that is still being written is left out.

    Raises:
        ValueError: a line is no JSON object; names it.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                yield f"{path}:{number}", _fields(f"{path}:{number}", line)


def _fields(place: str, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{place}: not a record of this version of vigor-trainer")
    return cast("dict[str, Any]", content)


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"
