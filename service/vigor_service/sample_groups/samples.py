"""Samples of groups as they are held while their groups are incomplete: token ids, not what came in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vigor_client.schemas.scoring import ScoringOptions
from vigor_service.engine.sequences import TokenSequence

BYTES_PER_TOKEN = 8
"""Of a token id, and of a place in a mask: references to objects that all samples share."""
BYTES_PER_LOGPROB = 32
"""Of a token's log-probability: a number of its own, and a reference to it."""
BYTES_PER_SAMPLE = 4096
"""Of the rest: the objects themselves, a task, its score, and a caller that waits."""


def held_bytes(sequence: TokenSequence) -> int:
    """Return about what a sequence with shared ids holds in memory."""
    return BYTES_PER_SAMPLE + BYTES_PER_TOKEN * (sequence.num_tokens + len(sequence.loss_mask or ()))


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion behind its prompt, and its place in the group of this name."""

    group: str
    group_size: int
    index: int
    sequence: TokenSequence
    is_truncated: bool = False
    options: ScoringOptions = field(default_factory=ScoringOptions)

    @property
    def num_bytes(self) -> int:
        """About what it holds in memory, its prompt and the numbers of tokens that its answer may return included."""
        ids = BYTES_PER_TOKEN * self.sequence.num_tokens if self.options.return_token_ids else 0
        logprobs = BYTES_PER_LOGPROB * self.sequence.num_loss_tokens if "token_logprobs" in self.options.compute else 0
        return held_bytes(self.sequence) + ids + logprobs

    def behind(self, prompt_ids: tuple[int, ...]) -> Sample:
        """Return the sample behind this prompt, which equals its own: one object for the whole group."""
        if prompt_ids is self.sequence.prompt_ids:
            return self
        return replace(self, sequence=replace(self.sequence, prompt_ids=prompt_ids))

    def is_same_completion(self, other: Sample) -> bool:
        """Whether both, of one group, have the same completion."""
        return (self.sequence, self.is_truncated) == (other.sequence, other.is_truncated)

    def differing(self, other: Sample) -> list[str]:
        """Return what differs from the other sample and must be the same within a group."""
        names = [name for name in ScoringOptions.model_fields if name != "wait_seconds"]
        differing = [name for name in names if getattr(self.options, name) != getattr(other.options, name)]
        if self.sequence.prompt_ids != other.sequence.prompt_ids:
            differing.insert(0, "prompt")
        if self.group_size != other.group_size:
            differing.insert(0, "group_size")
        return differing
