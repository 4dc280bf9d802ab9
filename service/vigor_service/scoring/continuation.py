"""Finds token ids that decode to exactly a given text after the ids of a prompt.

A tokenizer that puts a space before any text that it encodes, as SentencePiece does, would turn "4" into " 4". So each
candidate is decoded together with the prompt, and the first one that decodes to the text is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

_ANCHORS = ("\n", ".", "a", "0")
"""Texts that are put before a text to be encoded, because a tokenizer may add a space only at the beginning."""
_NUM_TAIL_TOKENS = 16
_MAX_CHARACTER_TOKENS = 4  # one for each UTF-8 byte of a character
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_NUM_QUOTED_CHARACTERS = 20


class TextTokenizer(Protocol):
    """The part of a transformers tokenizer that turns text into ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> Any: ...  # noqa: ANN401 - text


class UntokenizableError(ValueError):
    """The tokenizer fails on a text; the message says why."""


class NotContinuableError(UntokenizableError):
    """No tokens found decode to the text after the prompt; the message says where they differ."""


class Continuation:
    """Tokenizes completions of one prompt."""

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tail, self._before = _tail(tokenizer, prompt_ids)

    def ids(self, text: str) -> list[int]:
        """Return ids for which ``decode(prompt + ids)`` equals ``decode(prompt) + text``.

        Raises:
            NotContinuableError: no such ids exist, or none were found.
            UntokenizableError: the tokenizer fails on the text.
        """
        for candidate in self._candidates(text):
            if decoded(self._tokenizer, self._tail + candidate) == self._before + text:
                return candidate
        raise NotContinuableError(self._difference(text))

    def _candidates(self, text: str) -> Iterator[list[int]]:
        yield self._encode(text)
        for anchor in _ANCHORS:
            anchor_ids, ids = self._encode(anchor), self._encode(anchor + text)
            if ids[: len(anchor_ids)] == anchor_ids:
                yield ids[len(anchor_ids) :]

    def _encode(self, text: str) -> list[int]:
        return encoded(self._tokenizer, text, add_special_tokens=False)

    def _difference(self, text: str) -> str:
        read = decoded(self._tokenizer, self._tail + self._encode(text)).removeprefix(self._before)
        first = next((i for i, (a, b) in enumerate(zip(read, text, strict=False)) if a != b), min(len(read), len(text)))
        came, meant = (part[first : first + _NUM_QUOTED_CHARACTERS] for part in (read, text))
        return (
            f"the tokenizer cannot write exactly this text after the prompt: from character {first} on they read "
            f"{came!r} instead of {meant!r}; send the sampled `ids`"
        )


def _tail(tokenizer: TextTokenizer, prompt_ids: Sequence[int]) -> tuple[list[int], str]:
    """Return the last tokens of a prompt and their text. If possible, they begin at the beginning of a character.

    If every tail begins within a character, or the prompt itself contains the replacement character, the longest tail
    is used. That is harmless, because the tail is the same for every candidate.
    """
    tail: list[int] = []
    before = ""
    for num_tokens in range(_NUM_TAIL_TOKENS, _NUM_TAIL_TOKENS + _MAX_CHARACTER_TOKENS):
        tail = list(prompt_ids[-num_tokens:])
        before = decoded(tokenizer, tail)
        if _UNDECODABLE not in before:
            break
    return tail, before


def encoded(tokenizer: TextTokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Return the tokens of a text.

    Raises:
        UntokenizableError: the tokenizer fails on the text, for instance because it has no token for unknown text.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    except Exception as error:  # tokenizers has no exception class of its own
        raise UntokenizableError(f"the tokenizer fails on this text: {error}") from error


def decoded(tokenizer: TextTokenizer, token_ids: list[int]) -> str:
    """Return the text of tokens, with special tokens written out."""
    return tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
