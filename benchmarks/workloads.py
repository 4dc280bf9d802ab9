"""Which groups are scored by which model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class Workload:
    """One group: completions of evenly spread lengths after one prompt. ``model`` None is the embedded model."""

    name: str
    model: str | None
    num_completions: int
    num_prompt_tokens: int
    shortest: int
    longest: int
    dtype: str = "float32"

    def sequences(self, ids: Sequence[int]) -> list[TokenSequence]:
        """Cut the prompt and the completions from ``ids``, one after the other, from the start again at their end."""
        sequences: list[TokenSequence] = []
        start = self.num_prompt_tokens
        for length in self.completion_lengths():
            completion = tuple(ids[(start + offset) % len(ids)] for offset in range(length))
            sequences.append(TokenSequence(tuple(ids[: self.num_prompt_tokens]), completion))
            start += length
        return sequences

    def completion_lengths(self) -> list[int]:
        """The numbers of completion tokens, ascending."""
        spread = self.longest - self.shortest
        return [self.shortest + spread * i // max(1, self.num_completions - 1) for i in range(self.num_completions)]

    def describe(self) -> str:
        """Say what is scored, in words."""
        lengths = ", ".join(map(str, self.completion_lengths()))
        return f"{self.num_prompt_tokens} prompt tokens, completions of {lengths}"


ON_A_CPU = [
    Workload("short", None, 8, 64, 64, 192),
    Workload("long", None, 8, 200, 32, 300),
    Workload("untied", "llama-61m-untied", 8, 64, 64, 192),
]
ON_A_GPU = [
    Workload(shape, shape, 8, 512, 128, 1024, "bfloat16")
    for shape in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b")
]


def parse_workload(text: str) -> Workload:
    """Return the workload of that name, or the one that ``MODEL,COMPLETIONS,PROMPT,SHORTEST,LONGEST[,DTYPE]`` says.

    Raises:
        ValueError: it is neither.
    """
    named = {workload.name: workload for workload in (*ON_A_CPU, *ON_A_GPU)}
    if text in named:
        return named[text]
    model, *rest = text.split(",")
    if len(rest) not in (4, 5) or not all(number.isdigit() for number in rest[:4]):
        raise ValueError(
            f"{text!r} is neither one of {', '.join(named)} nor MODEL,COMPLETIONS,PROMPT,SHORTEST,LONGEST[,DTYPE]"
        )
    completions, prompt, shortest, longest = map(int, rest[:4])
    return Workload(text, model, completions, prompt, shortest, longest, *rest[4:])


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of an argument such as ``4096,16384``."""
    return [int(number) for number in text.split(",")]
