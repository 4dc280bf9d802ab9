"""Workloads: which groups are scored by which model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from vigor_service.engine.sequences import TokenSequence

FORM = "MODEL,COMPLETIONS,PROMPT,SHORTEST,LONGEST[,DTYPE[,GROUPS]]"


@dataclass(frozen=True, slots=True)
class Workload:
    """Groups, each with completions of evenly spread lengths after one prompt. ``model`` None is the embedded model."""

    name: str
    model: str | None
    num_completions: int
    num_prompt_tokens: int
    shortest: int
    longest: int
    dtype: str = "float32"
    num_groups: int = 1

    def sequences(self, ids: Sequence[int]) -> list[TokenSequence]:
        """Return sequences cut from ``ids`` one after the other, starting again at the end of ``ids``."""
        endless = cycle(ids)

        def cut(length: int) -> tuple[int, ...]:
            return tuple(islice(endless, length))

        sequences: list[TokenSequence] = []
        for _ in range(self.num_groups):
            prompt = cut(self.num_prompt_tokens)
            sequences += [TokenSequence(prompt, cut(length)) for length in self.completion_lengths()]
        return sequences

    def completion_lengths(self) -> list[int]:
        """The numbers of completion tokens, ascending."""
        spread = self.longest - self.shortest
        return [self.shortest + spread * i // max(1, self.num_completions - 1) for i in range(self.num_completions)]

    def describe(self) -> str:
        """Return a description of the workload."""
        lengths = ", ".join(map(str, self.completion_lengths()))
        groups = "" if self.num_groups == 1 else f"{self.num_groups} groups: "
        return f"{groups}{self.num_prompt_tokens} prompt tokens, completions of {lengths}"


ON_A_CPU = [
    Workload("short", None, 8, 64, 64, 192),
    Workload("long", None, 8, 200, 32, 300),
    Workload("untied", "llama-61m-untied", 8, 64, 64, 192),
]
ON_A_GPU = [
    Workload(shape, shape, 8, 512, 128, 1024, "bfloat16")
    for shape in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b")
]
STEPS_ON_A_GPU = [
    replace(workload, name=f"{workload.name}, {num_groups} groups", num_groups=num_groups)
    for workload in ON_A_GPU
    for num_groups in ((8, 32, 128) if workload.model == "qwen2.5-0.5b" else (8, 32))
]
"""The workloads of a training step. 128 groups of larger models would exceed the time of a run."""


def parse_workload(text: str) -> Workload:
    """Return the workload of that name, or make one from text of the form ``FORM``.

    Raises:
        ValueError: the text is neither.
    """
    named = {workload.name: workload for workload in (*ON_A_CPU, *ON_A_GPU, *STEPS_ON_A_GPU)}
    if text in named:
        return named[text]
    model, *rest = text.split(",")
    numbers, dtype, groups = rest[:4], rest[4:5] or ["float32"], rest[5:] or ["1"]
    if len(numbers) != 4 or len(groups) != 1 or not all(number.isdigit() for number in (*numbers, *groups)):
        raise ValueError(f"{text!r} is neither one of {', '.join(named)} nor {FORM}")
    completions, prompt, shortest, longest = map(int, numbers)
    return Workload(text, model, completions, prompt, shortest, longest, *dtype, num_groups=int(*groups))


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of an argument such as ``4096,16384``."""
    return [int(number) for number in text.split(",")]
