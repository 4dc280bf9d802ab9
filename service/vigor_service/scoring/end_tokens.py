"""The tokens that end a completion, and which of them is appended to a finished text without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ends:
    """All ends of one model.

    Args:
        token_ids: any of them ends a completion.
        of_text: what is appended to a finished text behind a prompt that is text or ids; None: there is none.
        of_turn: likewise behind messages: what the chat template closes an assistant's turn with.
    """

    token_ids: frozenset[int]
    of_text: int | None
    of_turn: int | None

    def are_reached_by(self, token_ids: Sequence[int]) -> bool:
        """Return whether the last token is an end."""
        return bool(token_ids) and token_ids[-1] in self.token_ids


def ends_of(*, eos_token_id: int | None, generation_ends: Iterable[int], closing_ids: Sequence[int]) -> Ends:
    """Return the ends of a model.

    Args:
        eos_token_id: the tokenizer's own.
        generation_ends: those of the model's generation config.
        closing_ids: what the chat template writes behind an assistant's message.
    """
    generation = tuple(generation_ends)
    token_ids = frozenset(generation if eos_token_id is None else (*generation, eos_token_id))
    of_text = eos_token_id if eos_token_id is not None else next(iter(generation), None)
    of_turn = next((token_id for token_id in closing_ids if token_id in token_ids), of_text)
    return Ends(token_ids, of_text, of_turn)


def generation_ends(model: object) -> tuple[int, ...]:
    """Return the ends that the generation config of a transformers model names."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(ends)
