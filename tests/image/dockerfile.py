"""The Dockerfile as instructions: those that it uses, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
KNOWN = ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK")
KNOWN += ("ENTRYPOINT",)


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, and all that follows as one line."""

    name: str
    rest: str

    def pairs(self) -> dict[str, str]:
        """Return ``NAME=value`` pairs, without quotes."""
        found = re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S*))', self.rest)
        return {name: quoted or plain for name, quoted, plain in found}


@dataclass(frozen=True)
class Stage:
    """What follows a FROM, and what it is based on."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Return the instructions of this name, in order."""
        return [it for it in self.instructions if it.name == name]

    def command(self, name: str) -> list[str]:
        """Return the command of the one instruction of this name, which is in JSON after any options."""
        (only,) = self.all(name)
        return json.loads(only.rest[only.rest.index("[") :])


def read_stages(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile.

    Raises:
        ValueError: it has an instruction that is not known here.
    """
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name not in KNOWN:
            raise ValueError(f"the instruction {instruction.name} is not known here")
        if instruction.name == "FROM":
            base, _, name = instruction.rest.partition(" AS ")
            stages.append(Stage(base, name or None))
        else:
            stages[-1].instructions.append(instruction)
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    for line in joined.splitlines():
        name, _, rest = line.partition(" ")
        yield Instruction(name, rest.strip())
