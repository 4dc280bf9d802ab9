"""A file of records, one line each, that a run appends to and a resumed run continues without gaps or duplicates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast


class Recorded(Protocol):
    """A dataclass that records a round or a part of it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def step(self) -> int: ...
    @property
    def mode(self) -> Literal["train", "eval"]: ...


Record = TypeVar("Record", bound=Recorded)


@dataclass(frozen=True, slots=True)
class Resumption:
    """The point at which a run resumes: at ``step``, with an evaluation if it ``evaluates_first``."""

    step: int
    evaluates_first: bool = False

    def keeps(self, record: Recorded) -> bool:
        """Return whether to keep a record, since its round will not be repeated.

        Rounds of later steps are repeated, and so are training rounds of this step. An evaluation at this step stays,
        unless the run begins with another.
        """
        return record.step < self.step or (
            record.step == self.step and record.mode == "eval" and not self.evaluates_first
        )


class RecordFile(Generic[Record]):
    """Appends records of one dataclass, each visible as soon as it is written.

    The first record replaces the file of an earlier run, so a run that cannot begin changes nothing. A resumed run
    keeps the records of rounds that it does not repeat.

    Raises:
        ValueError: a resumed run's file holds something else than such records; names the line.
    """

    def __init__(self, path: Path, kind: type[Record], resumption: Resumption | None = None) -> None:
        self._path = path
        self._kind = kind
        self._resumption = resumption
        self._has_begun = False
        for _ in self.earlier():
            pass

    def append(self, *records: Record) -> None:
        """Write these records with one call, so that a reader sees whole lines, except perhaps the last."""
        if not self._has_begun:
            self._begin()
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))

    def _begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = self._path.with_name(f"{self._path.name}.partial")
        with rewritten.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self.earlier()))
        rewritten.replace(self._path)
        self._has_begun = True

    def earlier(self) -> Iterable[Record]:
        """Return the records that a resumed run keeps: those of rounds that it does not repeat."""
        if self._resumption is None:
            return []
        return filter(self._resumption.keeps, records_in(self._path, self._kind))


def records_in(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the records written so far; an incomplete last line is left out.

    A field with a default may be absent, as in records of a version without that field.

    Raises:
        ValueError: a line is not such a record; names it.
    """
    if not path.exists():
        return
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                found = _fields(line)
                if not needed <= set(found) <= names:
                    raise ValueError(f"{path}:{number}: not a record of this version of vigor-trainer")
                yield kind(**found)


def _fields(line: str) -> dict[str, Any]:
    """Return the fields of a JSON object; empty if the line is not an object."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _line(record: Recorded) -> str:
    return json.dumps(asdict(record)) + "\n"
