"""Samples that come as text, one at a time and without a group, as OpenRLHF and slime send them."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pydantic import BaseModel, ConfigDict

from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import Completion, CompletionScore
from vigor_service.engine.sequences import TokenSequence
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.sample_groups.by_prompt import PromptGroups
from vigor_service.sample_groups.samples import held_bytes
from vigor_service.scoring.encoding import RequestEncoder


class RewardRequest(BaseModel):
    """A request for rewards. Undeclared fields are ignored, and not held in memory until a group is complete.

    Examples are the labels, which VIGOR does not need, and the fields that newer versions add.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class TextSamples:
    """Scores samples whose special tokens are written out as text. Samples of one prompt form one group.

    ``encode`` is a separate call so that callers can drop a text as soon as its token ids are known: it may take long
    until the other samples of the group arrive.
    """

    def __init__(self, encoder: RequestEncoder, assembly: GroupAssembly) -> None:
        self._encoder = encoder
        self._assembly = assembly
        self._groups = PromptGroups(assembly)

    async def encode(self, prompt: GivenPrompt, text: str) -> TokenSequence:
        """Return the token ids. A text without an end token at its end was cut off, so none is appended."""
        completion = Completion(text=text, finish_reason="length")
        return await self._encoder.encode_sample(prompt, completion, add_special_tokens=False)

    async def score(self, sequence: TokenSequence, *, group_size: int) -> CompletionScore:
        """Return the sample's score when its group is complete. Raises as ``PromptGroups.score``."""
        return (await self._groups.score(sequence, group_size=group_size)).completion

    def held(self, sequence: TokenSequence) -> AbstractContextManager[None]:
        """Count the memory of a sample that waits outside of any group. Raises QueueFullError: too many are held."""
        return self._assembly.holding(held_bytes(sequence))
