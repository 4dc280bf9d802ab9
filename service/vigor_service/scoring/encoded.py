"""A score request as token sequences: its groups, and the distinct sequences that the engine has to score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vigor_client.schemas.scoring import CompletionStatus, ScoringOptions, TruncatedRule
from vigor_service.engine.sequences import ScoreParts, TokenSequence
from vigor_service.weights.version import WeightRequirement

SMALL_REQUEST_COMPLETIONS = 64
SMALL_REQUEST_IDS = 16_384
"""Limits of a small request, which is encoded or answered in about a millisecond. Ids count once for each prompt."""


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One group as token sequences, with a flag for each completion that was cut off by the length limit."""

    id: str | None
    sequences: tuple[TokenSequence, ...]
    is_truncated: tuple[bool, ...]

    def statuses(self, truncated: TruncatedRule) -> Iterator[tuple[TokenSequence, CompletionStatus | None]]:
        """Yield each completion with the status that it has without a score, or None if the engine has to score it."""
        for sequence, is_truncated in zip(self.sequences, self.is_truncated, strict=True):
            if is_truncated and truncated == "worst":
                yield sequence, "truncated"
            elif sequence.num_loss_tokens == 0:
                yield sequence, "empty"
            else:
                yield sequence, None


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A score request as token sequences. Repeated completions are merged here, so later steps see each only once.

    ``groups_of`` maps each distinct sequence that the engine has to score, in order of appearance, to the indices of
    the groups that contain it. ``num_repeated`` counts the completions that share the score of an equal one.
    ``admitted_tokens`` is the number of tokens that the request counts in the queue: the tokens that the engine scores,
    but at least the number of completions, since all of them are held and ranked.
    """

    options: ScoringOptions
    groups: Sequence[EncodedGroup]
    groups_of: Mapping[TokenSequence, Sequence[int]] = field(init=False)
    num_repeated: int = field(init=False)
    admitted_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        groups_of: dict[TokenSequence, list[int]] = {}
        num_scored = 0
        for index, group in enumerate(self.groups):
            for sequence in (item for item, status in group.statuses(self.options.truncated) if status is None):
                num_scored += 1
                indices = groups_of.setdefault(sequence, [])
                if indices[-1:] != [index]:
                    indices.append(index)
        object.__setattr__(self, "groups_of", groups_of)
        object.__setattr__(self, "num_repeated", num_scored - len(groups_of))
        num_tokens = sum(sequence.num_tokens for sequence in groups_of)
        object.__setattr__(self, "admitted_tokens", max(num_tokens, self.num_completions))

    @property
    def requirement(self) -> WeightRequirement:
        """The weights from which all of the request's scores must come."""
        return WeightRequirement(self.options.weight_version, self.options.weight_digest)

    @property
    def parts(self) -> ScoreParts:
        """The parts that each of the request's scores must have."""
        return ScoreParts(norm="norm" in self.options.compute, token_logprobs="token_logprobs" in self.options.compute)

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens; each group's prompt counts once."""
        return sum(len(group.sequences[0].prompt_ids) for group in self.groups)

    @property
    def completion_tokens(self) -> int:
        """Number of completion tokens, including completions that the engine does not score."""
        return sum(len(sequence.completion_ids) for group in self.groups for sequence in group.sequences)

    @property
    def num_completions(self) -> int:
        return sum(len(group.sequences) for group in self.groups)

    @property
    def is_small(self) -> bool:
        """Whether ranking and writing its answer takes about a millisecond."""
        if self.num_completions > SMALL_REQUEST_COMPLETIONS:
            return False
        return self.prompt_tokens + self.completion_tokens <= SMALL_REQUEST_IDS
