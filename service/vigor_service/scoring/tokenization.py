"""From a score request to token sequences, with every fault of the request listed at once.

Text and messages become ids here and nowhere else. Runs in a worker thread; knows no weights and no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import MAX_COMPLETIONS, Completion, FinishReason, Group, ScoreRequest
from vigor_service.engine.sequences import PromptIds, TokenSequence
from vigor_service.errors import PayloadTooLargeError, SequenceTooLongError, invalid_request
from vigor_service.scoring.chat_prompts import ChatPromptError, ChatTokenizer, closing_text, rendered
from vigor_service.scoring.continuation import Continuation, TextTokenizer, UntokenizableError, decoded, encoded
from vigor_service.scoring.end_tokens import Ends, ends_of
from vigor_service.threads.work_limit import checkpoint

MAX_CHARACTERS_PER_TOKEN = 64
"""A text longer than the model's limit at this rate is refused before it costs a tokenization."""
MAX_TEMPLATE_SHARE = 4
"""A template may write so many times the longest text: what its macros write counts several times."""
MAX_REQUEST_TOKENS = 1 << 24

_NOTHING_SCORED = "nothing was scored"
_Place = tuple[str | int, ...]


class Tokenizer(TextTokenizer, ChatTokenizer, Protocol):
    """What is asked of a transformers tokenizer."""

    @property
    def eos_token_id(self) -> Any: ...  # noqa: ANN401 - transformers types it so; None where there is no EOS


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One group as the engine sees it, and which of its completions were cut off by the length limit."""

    id: str | None
    sequences: tuple[TokenSequence, ...]
    is_truncated: tuple[bool, ...]


class Encoder:
    """Turns requests into sequences for one model. Without a tokenizer only ids are understood.

    Several threads may encode at once. Work that may take long is cut by ``checkpoint``.

    Args:
        generation_ends: tokens that end a completion besides the tokenizer's own EOS.
        max_request_tokens: tokens of one request, each completion counted with its prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_sequence_tokens: int,
        *,
        generation_ends: Sequence[int] = (),
        max_request_tokens: int = MAX_REQUEST_TOKENS,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_sequence_tokens = max_sequence_tokens
        self.max_request_tokens = max_request_tokens
        self.ends = None if tokenizer is None else _ends(_warm(tokenizer), generation_ends)

    def encode(self, request: ScoreRequest) -> list[EncodedGroup]:
        """Return the groups as token sequences.

        Raises:
            InvalidRequestError: lists every id outside the vocabulary and every text that cannot be tokenized.
            SequenceTooLongError: nothing else is wrong, but sequences exceed the model's limit.
            PayloadTooLargeError: the request has more completions or tokens, or takes longer, than one request may.
            ClientGoneError: as ``checkpoint``.
        """
        _refuse_many_completions(request)
        encoding = _Encoding(self)
        groups = [encoding.group(group, index) for index, group in enumerate(request.groups)]
        encoding.refuse_faults()
        return groups

    def token_ids(self, text: str, *, place: Sequence[str | int]) -> tuple[int, ...]:
        """Return the ids of a text to which no special token is added.

        Raises:
            InvalidRequestError: there is no tokenizer, or the text has no token; names the place.
        """
        encoding = _Encoding(self)
        ids = encoding.some(encoding.tokenized(text, tuple(place), add_special_tokens=False), tuple(place))
        encoding.refuse_faults()
        return ids

    def pieces(self, token_ids: Sequence[int]) -> list[str | None]:
        """Return what each token adds to the text of the one before it; None where there is no tokenizer."""
        pairs = zip((None, *token_ids), token_ids, strict=False)
        return [self._piece(before, token_id) for before, token_id in pairs]

    def _piece(self, before: int | None, token_id: int) -> str | None:
        """Many tokenizers drop a space at the beginning of a text: the token before shows whether there is one."""
        if before is None:
            return self._text([token_id])
        both, first = self._text([before, token_id]), self._text([before])
        if both is None or first is None or not both.startswith(first):
            return self._text([token_id])
        return both[len(first) :]

    def _text(self, token_ids: list[int]) -> str | None:
        if self.tokenizer is None:
            return None
        return decoded(self.tokenizer, token_ids)


class _Behind:
    """What completions of one group stand behind."""

    def __init__(self, prompt_ids: PromptIds, encoder: Encoder, *, in_chat: bool) -> None:
        self.prompt_ids = prompt_ids
        self.in_chat = in_chat
        self._encoder = encoder

    @cached_property
    def continuation(self) -> Continuation | None:
        """None without a tokenizer. Made for the first completion that is text."""
        tokenizer = self._encoder.tokenizer
        return None if tokenizer is None else Continuation(tokenizer, self.prompt_ids)


class _Encoding:
    """One pass over one request, which goes on after a fault."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._faults: list[FieldError] = []
        self._overlong: list[tuple[_Place, int]] = []
        self._prompts: dict[PromptIds, PromptIds] = {}
        self._num_tokens = 0

    def group(self, group: Group, index: int) -> EncodedGroup:
        prompt_ids = PromptIds(self._prompt(group, ("groups", index)))
        behind = _Behind(
            self._prompts.setdefault(prompt_ids, prompt_ids), self._encoder, in_chat=group.messages is not None
        )
        sequences = tuple(
            self._sequence(behind, completion, ("groups", index, "completions", position))
            for position, completion in enumerate(group.completions)
        )
        is_truncated = tuple(completion.finish_reason == "length" for completion in group.completions)
        return EncodedGroup(group.id, sequences, is_truncated)

    def refuse_faults(self) -> None:
        limit = self._encoder.max_sequence_tokens
        overlong = [
            FieldError(loc=list(place), msg=f"{length} tokens with its prompt, the limit is {limit}")
            for place, length in self._overlong
        ]
        if self._faults:
            raise invalid_request([*self._faults, *overlong], consequence=_NOTHING_SCORED)
        if self._overlong:
            (_, group, _, completion), length = self._overlong[0]
            raise SequenceTooLongError(
                f"{len(overlong)} sequences are longer than the model's {limit} tokens; {_NOTHING_SCORED}",
                errors=overlong,
                group=group,
                completion=completion,
                length=length,
                limit=limit,
            )

    def _prompt(self, group: Group, place: _Place) -> tuple[int, ...]:
        if group.prompt_ids is not None:
            return self._checked(group.prompt_ids, (*place, "prompt_ids"))
        if group.prompt is not None:
            place = (*place, "prompt")
            ids = self.tokenized(group.prompt, place, add_special_tokens=True)
        else:
            place = (*place, "messages")
            ids = self._rendered(group, place)
        return self.some(ids, place)

    def some(self, ids: tuple[int, ...], place: _Place) -> tuple[int, ...]:
        """Return the ids of a prompt, which needs at least one."""
        return ids or self._fault(place, "has no token")

    def _sequence(self, behind: _Behind, completion: Completion, place: _Place) -> TokenSequence:
        checkpoint()
        if completion.text is not None:
            ids = self._completion_text(behind, completion.text, completion.finish_reason, (*place, "text"))
        else:
            ids = self._checked(completion.ids or [], (*place, "ids"))
        num_tokens = len(behind.prompt_ids) + len(ids)
        if num_tokens > self._encoder.max_sequence_tokens:
            self._overlong.append((place, num_tokens))
            return TokenSequence(behind.prompt_ids, ())
        self._count(num_tokens, place)
        return TokenSequence(behind.prompt_ids, ids, _loss_mask(completion))

    def _count(self, num_tokens: int, place: _Place) -> None:
        """Refuse the request as soon as it is too large: what would follow is not worth its time."""
        self._num_tokens += num_tokens
        limit = self._encoder.max_request_tokens
        if self._num_tokens > limit:
            raise PayloadTooLargeError(
                f"the request has more than {limit} tokens, each completion counted with its prompt; "
                f"{_NOTHING_SCORED}: send fewer groups at once",
                errors=[FieldError(loc=list(place), msg=f"{self._num_tokens} tokens up to here, the limit is {limit}")],
                limit=limit,
            )

    def _completion_text(
        self, behind: _Behind, text: str, finish_reason: FinishReason | None, place: _Place
    ) -> tuple[int, ...]:
        """Text is a finished completion unless it is said to be cut off: it ends with an end token."""
        ends = self._encoder.ends
        if behind.continuation is None or ends is None:
            return self._fault(place, "the model has no tokenizer: send ids")
        if ids := self._overlong_text(text):
            return ids
        try:
            ids = self._checked(behind.continuation.ids(text), place)
        except UntokenizableError as error:
            return self._fault(place, str(error))
        if finish_reason == "length" or ends.are_reached_by(ids):
            return ids
        end = ends.of_turn if behind.in_chat else ends.of_text
        if end is None:
            return self._fault(
                place, "the model has no end token to append to finished text: send `ids`, or say `length`"
            )
        return (*ids, end)

    def _rendered(self, prompt: GivenPrompt, place: _Place) -> tuple[int, ...]:
        """The template writes the special tokens itself, so none is added."""
        if self._encoder.tokenizer is None:
            return self._fault(place, "the model has no tokenizer: send `prompt_ids`")
        max_characters = MAX_TEMPLATE_SHARE * MAX_CHARACTERS_PER_TOKEN * self._encoder.max_sequence_tokens
        try:
            text = rendered(self._encoder.tokenizer, prompt, max_characters=max_characters)
        except ChatPromptError as error:
            return self._fault((*place[:-1], error.field), str(error))
        return self.tokenized(text, place, add_special_tokens=False)

    def tokenized(self, text: str, place: _Place, *, add_special_tokens: bool) -> tuple[int, ...]:
        tokenizer = self._encoder.tokenizer
        if tokenizer is None:
            return self._fault(place, "the model has no tokenizer: send ids")
        if ids := self._overlong_text(text):
            return ids
        try:
            return self._checked(encoded(tokenizer, text, add_special_tokens=add_special_tokens), place)
        except UntokenizableError as error:
            return self._fault(place, str(error))

    def _overlong_text(self, text: str) -> tuple[int, ...]:
        """Stand-ins for the tokens of a text that is too long whatever they are; none where it may fit."""
        num_tokens_at_least = len(text) // MAX_CHARACTERS_PER_TOKEN
        return (0,) * num_tokens_at_least if num_tokens_at_least > self._encoder.max_sequence_tokens else ()

    def _checked(self, ids: Sequence[int], place: _Place) -> tuple[int, ...]:
        """Return the ids; where there are more than the model takes, which are refused anyway, stand-ins for them."""
        if len(ids) > self._encoder.max_sequence_tokens:
            return (0,) * len(ids)
        limit = self._encoder.vocab_size
        if ids and max(ids) >= limit:
            wrong = [position for position, token_id in enumerate(ids) if token_id >= limit]
            more = f"; {len(wrong) - 1} more here" if len(wrong) > 1 else ""
            self._fault((*place, wrong[0]), f"id {ids[wrong[0]]} is outside the vocabulary of {limit}{more}")
            return tuple(token_id if token_id < limit else 0 for token_id in ids)
        return tuple(ids)

    def _fault(self, place: _Place, message: str) -> tuple[int, ...]:
        """Note a fault; one token stands in for what is wrong, so that the rest is still checked."""
        self._faults.append(FieldError(loc=list(place), msg=message))
        return (0,)


def _refuse_many_completions(request: ScoreRequest) -> None:
    num_completions = sum(len(group.completions) for group in request.groups)
    if num_completions > MAX_COMPLETIONS:
        raise PayloadTooLargeError(
            f"the request has {num_completions} completions, the limit is {MAX_COMPLETIONS}; {_NOTHING_SCORED}: "
            "send fewer groups at once",
            limit=MAX_COMPLETIONS,
        )


def _warm(tokenizer: Tokenizer) -> Tokenizer:
    """A first text takes off the truncation and padding that a tokenizer was saved with, which only one thread may."""
    with suppress(UntokenizableError):
        encoded(tokenizer, "a", add_special_tokens=False)
    return tokenizer


def _ends(tokenizer: Tokenizer, generation_ends: Sequence[int]) -> Ends:
    closing_ids: list[int] = []
    with suppress(UntokenizableError):
        closing_ids = encoded(tokenizer, closing_text(tokenizer) or "", add_special_tokens=False)
    return ends_of(eos_token_id=tokenizer.eos_token_id, generation_ends=generation_ends, closing_ids=closing_ids)


def _loss_mask(completion: Completion) -> tuple[bool, ...] | None:
    """A mask that leaves nothing out is none: equal sequences are to be equal."""
    if completion.mask is None or all(completion.mask):
        return None
    return tuple(map(bool, completion.mask))
