"""The loads that `python -m benchmarks.serving` sends to the service, on a CPU and on a GPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True)
class GroupSizes:
    """The sizes of a group of random ids."""

    completions: int
    prompt_tokens: int
    shortest: int
    longest: int

    def group(self, source: random.Random, vocab_size: int) -> list[TokenSequence]:
        """Return one group."""

        def ids(count: int) -> tuple[int, ...]:
            return tuple(source.randrange(3, vocab_size) for _ in range(count))

        prompt = ids(self.prompt_tokens)
        lengths = (source.randint(self.shortest, self.longest) for _ in range(self.completions))
        return [TokenSequence(prompt, ids(length)) for length in lengths]

    def describe(self) -> str:
        """Return the sizes in words."""
        lengths = f"{self.shortest} to {self.longest}"
        return f"{self.completions} completions of {lengths} tokens after a prompt of {self.prompt_tokens}"


def body_of(group: Sequence[TokenSequence]) -> dict[str, object]:
    """Return a group as it is in a request."""
    return {
        "prompt_ids": list(group[0].prompt_ids),
        "completions": [list(sequence.completion_ids) for sequence in group],
    }


@dataclass(frozen=True)
class Load:
    """Usual and small groups, and the maximum numbers of tokens in a batch and in the queue."""

    dtype: str
    usual: GroupSizes
    small: GroupSizes
    batch_tokens: int
    queued_tokens: int


ON_A_CPU = Load("float32", GroupSizes(8, 64, 64, 192), GroupSizes(2, 16, 16, 32), 2_048, 16_384)
ON_A_GPU = Load("bfloat16", GroupSizes(8, 512, 128, 1024), GroupSizes(2, 64, 64, 128), 16_384, 131_072)
