"""From a text to the token ids that read as exactly this text behind a prompt's ids.

A tokenizer that puts a space before whatever it encodes (SentencePiece's way) would make " 4" of "4". So each
candidate is decoded behind the prompt, and the first that reads back as the text is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

_ANCHORS = ("\n", ".", "a", "0")
"""Texts that are put before a text so that it does not stand at the beginning, where a space would be put."""
_NUM_TAIL_TOKENS = 16
_MAX_CHARACTER_TOKENS = 4  # one for each byte of a character in UTF-8
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_NUM_QUOTED_CHARACTERS = 20


class TextTokenizer(Protocol):
    """The part of a transformers tokenizer that turns text into ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> Any: ...  # noqa: ANN401 - text


class UntokenizableError(ValueError):
    """The tokenizer fails on a text; says why."""


class NotContinuableError(UntokenizableError):
    """No tokens of this tokenizer read as the text behind the prompt; says where they differ."""


class Continuation:
    """Tokenizes completions behind one prompt."""

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tail, self._before = _tail(tokenizer, prompt_ids)

    def ids(self, text: str) -> list[int]:
        """Return ids for which ``decode(prompt + ids)`` equals ``decode(prompt) + text``.

        Raises:
            NotContinuableError: the tokenizer has none, or none that can be found.
            UntokenizableError: the tokenizer fails on it.
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
    """Return the last tokens of a prompt, and their text, from the beginning of a character on if there is one.

    Where all beginnings are within a character, or the prompt itself has what stands for an undecodable one, the
    longest tail will do: it is the same in front of every candidate.
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
        UntokenizableError: the tokenizer fails on it, as one without a token for what it does not know.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    except Exception as error:  # tokenizers has no class of its own for what it raises
        raise UntokenizableError(f"the tokenizer fails on this text: {error}") from error


def decoded(tokenizer: TextTokenizer, token_ids: list[int]) -> str:
    """Return the text of tokens, special ones written out."""
    return tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
