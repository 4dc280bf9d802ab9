"""Turns text and messages into the token ids of one model. Knows no requests and no vocabulary limit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from vigor_client.schemas.prompts import GivenPrompt
from vigor_service.scoring.chat_prompts import ChatTokenizer, closing_text, rendered
from vigor_service.scoring.continuation import Continuation, TextTokenizer, UntokenizableError, decoded, encoded
from vigor_service.scoring.end_tokens import Ends, ends_of

MAX_CHARACTERS_PER_TOKEN = 64
"""A text with more characters than the model's token limit times this number is refused without being tokenized."""
MOST_TOKENS_OF_A_CHARACTER = 8
"""Maximum number of tokens that are decoded together to find a whole character, which has at most four bytes."""
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
MAX_TEMPLATE_SHARE = 4
"""A template may write this many times the longest text, because the output of its macros counts several times."""


class Tokenizer(TextTokenizer, ChatTokenizer, Protocol):
    """The part of a transformers tokenizer that is used."""

    @property
    def eos_token_id(self) -> Any: ...  # noqa: ANN401 - transformers types it so; None if there is no EOS


class TextTokens:
    """Tokenizes for one model. Several threads may use it at once.

    A text that is too long in any tokenization is not tokenized: placeholder ids are returned instead, which are too
    many for the model. Without a tokenizer every text is refused.

    Args:
        generation_ends: tokens that end a completion besides the tokenizer's own EOS.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, *, max_sequence_tokens: int, generation_ends: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._max_sequence_tokens = max_sequence_tokens
        self._ends = None if tokenizer is None else _ends(_warm(tokenizer), generation_ends)

    def text_prompt(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Return the ids of a prompt that is text.

        Raises:
            UntokenizableError: there is no tokenizer, or it fails on the text.
        """
        if self._tokenizer is None:
            raise UntokenizableError("the model has no tokenizer: send ids")
        return self._overlong(text) or encoded(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def chat_prompt(self, prompt: GivenPrompt) -> Sequence[int]:
        """Return the ids of a prompt that is messages. None are added, since the template writes the special tokens.

        Raises:
            ChatPromptError, ServiceError: as ``rendered``.
            UntokenizableError: there is no tokenizer, or it fails on the rendered text.
        """
        if self._tokenizer is None:
            raise UntokenizableError("the model has no tokenizer: send `prompt_ids`")
        max_characters = MAX_TEMPLATE_SHARE * MAX_CHARACTERS_PER_TOKEN * self._max_sequence_tokens
        text = rendered(self._tokenizer, prompt, max_characters=max_characters)
        return self.text_prompt(text, add_special_tokens=False)

    def continuation(self, prompt_ids: Sequence[int]) -> Continuation:
        """Return the tokenizer of completions for this prompt.

        Raises:
            UntokenizableError: there is no tokenizer.
        """
        if self._tokenizer is None:
            raise UntokenizableError("the model has no tokenizer: send ids")
        return Continuation(self._tokenizer, prompt_ids)

    def completion(self, continuation: Continuation, text: str, *, in_chat: bool, is_cut_off: bool) -> Sequence[int]:
        """Return the ids of a completion. If it was not cut off, an end token is appended unless it ends with one.

        Raises:
            UntokenizableError: no tokens decode to exactly this text, or the model has no end token to append.
        """
        if stand_ins := self._overlong(text):
            return stand_ins
        ids, ends = continuation.ids(text), self._ends
        if is_cut_off or ends is None or ends.are_reached_by(ids):
            return ids
        end = ends.of_turn if in_chat else ends.of_text
        if end is None:
            raise UntokenizableError(
                "the model has no end token to append to finished text: send `ids`, or set `finish_reason` to `length`"
            )
        return [*ids, end]

    def pieces(self, token_ids: Sequence[int]) -> list[str | None]:
        """Return the text that each token adds after the one before it; None without a tokenizer.

        If several tokens make up one character, the first one has the character, and the others have an empty text.
        """
        pieces: list[str | None] = []
        while (position := len(pieces)) < len(token_ids):
            before = token_ids[position - 1] if position else None
            whole, num_tokens = self._whole_piece(before, token_ids[position : position + MOST_TOKENS_OF_A_CHARACTER])
            pieces += [whole, *([""] * (num_tokens - 1))]
        return pieces

    def _whole_piece(self, before: int | None, token_ids: Sequence[int]) -> tuple[str | None, int]:
        """Return the text of as few of the first tokens as make up whole characters, and their number."""
        texts = (self._piece(before, token_ids[:count]) for count in range(1, len(token_ids) + 1))
        first = next(texts)
        if first is None or _NO_CHARACTER not in first:
            return first, 1
        found = ((text, count) for count, text in enumerate(texts, start=2) if text and _NO_CHARACTER not in text)
        return next(found, (first, 1))

    def _piece(self, before: int | None, token_ids: Sequence[int]) -> str | None:
        """Return the text that these tokens add after the token before.

        Many tokenizers drop a space at the beginning of a text, so the tokens are decoded with the one before them.
        """
        if self._tokenizer is None:
            return None
        alone = decoded(self._tokenizer, list(token_ids))
        if before is None:
            return alone
        both, first = decoded(self._tokenizer, [before, *token_ids]), decoded(self._tokenizer, [before])
        return both[len(first) :] if both.startswith(first) else alone

    def _overlong(self, text: str) -> Sequence[int]:
        """Return placeholder ids for a text that is too long in any tokenization; no ids if the text may fit."""
        num_tokens_at_least = len(text) // MAX_CHARACTERS_PER_TOKEN
        return (0,) * num_tokens_at_least if num_tokens_at_least > self._max_sequence_tokens else ()


def _warm(tokenizer: Tokenizer) -> Tokenizer:
    """Encode a first text: that removes the truncation and padding that were saved with a tokenizer.

    Removing them is not safe once several threads use the tokenizer.
    """
    with suppress(UntokenizableError):
        encoded(tokenizer, "a", add_special_tokens=False)
    return tokenizer


def _ends(tokenizer: Tokenizer, generation_ends: Sequence[int]) -> Ends:
    closing_ids: list[int] = []
    with suppress(UntokenizableError):
        closing_ids = encoded(tokenizer, closing_text(tokenizer) or "", add_special_tokens=False)
    return ends_of(eos_token_id=tokenizer.eos_token_id, generation_ends=generation_ends, closing_ids=closing_ids)
