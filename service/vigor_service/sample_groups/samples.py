"""Samples as they are held while their groups are incomplete: token ids, not the requests themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vigor_client.schemas.scoring import ScoringOptions
from vigor_service.engine.sequences import TokenSequence

BYTES_PER_TOKEN = 8
"""Bytes of a token id, or of an entry of a mask: a reference to an object that all samples share."""
BYTES_PER_LOGPROB = 32
"""Bytes of a token's log-probability: a number object, and a reference to it."""
BYTES_PER_SAMPLE = 4096
"""Bytes of the rest of a sample: the objects themselves, a task, the score, and a caller that waits."""


def held_bytes(sequence: TokenSequence) -> int:
    """Return the approximate memory of a sequence with shared ids, in bytes."""
    return BYTES_PER_SAMPLE + BYTES_PER_TOKEN * (sequence.num_tokens + len(sequence.loss_mask or ()))


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion with its prompt, and its index in the group of this name."""

    group: str
    group_size: int
    index: int
    sequence: TokenSequence
    is_truncated: bool = False
    options: ScoringOptions = field(default_factory=ScoringOptions)

    @property
    def num_bytes(self) -> int:
        """Approximate memory in bytes, including the prompt and the per-token numbers that its answer may return."""
        ids = BYTES_PER_TOKEN * self.sequence.num_tokens if self.options.return_token_ids else 0
        logprobs = BYTES_PER_LOGPROB * self.sequence.num_loss_tokens if "token_logprobs" in self.options.compute else 0
        return held_bytes(self.sequence) + ids + logprobs

    def behind(self, prompt_ids: tuple[int, ...]) -> Sample:
        """Return the sample with this prompt object, which equals its own, so that the group shares one object."""
        if prompt_ids is self.sequence.prompt_ids:
            return self
        return replace(self, sequence=replace(self.sequence, prompt_ids=prompt_ids))

    def is_same_completion(self, other: Sample) -> bool:
        """Return whether two samples of one group have the same completion."""
        return (self.sequence, self.is_truncated) == (other.sequence, other.is_truncated)

    def differing(self, other: Sample) -> list[str]:
        """Return the names of what differs from the other sample but must be the same within a group."""
        names = [name for name in ScoringOptions.model_fields if name != "wait_seconds"]
        differing = [name for name in names if getattr(self.options, name) != getattr(other.options, name)]
        if self.sequence.prompt_ids != other.sequence.prompt_ids:
            differing.insert(0, "prompt")
        if self.group_size != other.group_size:
            differing.insert(0, "group_size")
        return differing
