"""The tokens that end a completion, and the one that is appended to a finished text without an end token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ends:
    """All end tokens of one model.

    Args:
        token_ids: ids of all end tokens; any of them ends a completion.
        of_text: id that is appended to a finished text if the prompt is text or ids; None if the model has none.
        of_turn: id that is appended if the prompt is messages: the chat template ends an assistant's turn with it.
    """

    token_ids: frozenset[int]
    of_text: int | None
    of_turn: int | None

    def are_reached_by(self, token_ids: Sequence[int]) -> bool:
        """Return whether the last token is an end token."""
        return bool(token_ids) and token_ids[-1] in self.token_ids


def ends_of(*, eos_token_id: int | None, generation_ends: Iterable[int], closing_ids: Sequence[int]) -> Ends:
    """Return the end tokens of a model.

    Args:
        eos_token_id: end token of the tokenizer.
        generation_ends: end tokens of the model's generation config.
        closing_ids: tokens that the chat template writes after an assistant's message.
    """
    generation = tuple(generation_ends)
    token_ids = frozenset(generation if eos_token_id is None else (*generation, eos_token_id))
    of_text = eos_token_id if eos_token_id is not None else next(iter(generation), None)
    of_turn = next((token_id for token_id in closing_ids if token_id in token_ids), of_text)
    return Ends(token_ids, of_text, of_turn)


def generation_ends(model: object) -> tuple[int, ...]:
    """Return the ids of the end tokens in the generation config of a transformers model."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(ends)
