"""From a score request to token sequences, with every fault of the request listed at once.

Text and messages become ids here and nowhere else. Runs in a worker thread; knows no weights and no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from vigor_client.schemas import Completion, FieldError, FinishReason, Group, Message, ScoreRequest
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import SequenceTooLongError, invalid_request

MAX_CHARACTERS_PER_TOKEN = 64
"""A text longer than the model's limit at this rate is refused before it costs a tokenization."""

_NOTHING_SCORED = "nothing was scored"
_Place = tuple[str | int, ...]


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    @property
    def eos_token_id(self) -> Any: ...  # noqa: ANN401 - transformers types it so; None where there is no EOS

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> Any: ...  # noqa: ANN401 - text

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...  # noqa: ANN401 - text, when it is not asked to tokenize


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One group as the engine sees it, and which of its completions were cut off by the length limit."""

    id: str | None
    sequences: tuple[TokenSequence, ...]
    is_truncated: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns requests into sequences for one model. Without a tokenizer only ids are understood."""

    tokenizer: Tokenizer | None
    vocab_size: int
    max_sequence_tokens: int

    def encode(self, request: ScoreRequest) -> list[EncodedGroup]:
        """Return the groups as token sequences.

        Raises:
            InvalidRequestError: lists every id outside the vocabulary and every text that cannot be tokenized.
            SequenceTooLongError: nothing else is wrong, but sequences exceed the model's limit.
        """
        encoding = _Encoding(self)
        groups = [encoding.group(group, index) for index, group in enumerate(request.groups)]
        encoding.refuse_faults()
        return groups

    def token_ids(self, text: str, *, place: Sequence[str | int]) -> tuple[int, ...]:
        """Return the ids of a text to which no special token is added.

        Raises:
            InvalidRequestError: there is no tokenizer; names the place.
        """
        encoding = _Encoding(self)
        ids = encoding.tokenized(text, tuple(place), add_special_tokens=False)
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
        return self.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)


class _Encoding:
    """One pass over one request, which goes on after a fault."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._faults: list[FieldError] = []
        self._overlong: list[tuple[_Place, int]] = []

    def group(self, group: Group, index: int) -> EncodedGroup:
        prompt_ids = self._prompt(group, ("groups", index))
        sequences = tuple(
            self._sequence(prompt_ids, completion, ("groups", index, "completions", position))
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
            ids = self._rendered(group.messages or [], place)
        return ids or self._fault(place, "has no token")

    def _sequence(self, prompt_ids: tuple[int, ...], completion: Completion, place: _Place) -> TokenSequence:
        if completion.text is not None:
            ids = self._completion_text(completion.text, completion.finish_reason, (*place, "text"))
        else:
            ids = self._checked(completion.ids or [], (*place, "ids"))
        sequence = TokenSequence(prompt_ids, ids, _loss_mask(completion))
        if sequence.num_tokens > self._encoder.max_sequence_tokens:
            self._overlong.append((place, sequence.num_tokens))
        return sequence

    def _completion_text(self, text: str, finish_reason: FinishReason | None, place: _Place) -> tuple[int, ...]:
        ids = self.tokenized(text, place, add_special_tokens=False)
        if finish_reason != "stop" or self._encoder.tokenizer is None:
            return ids
        eos = self._encoder.tokenizer.eos_token_id
        if eos is None:
            self._fault(place, "the tokenizer has no EOS token to append for `stop`: send `ids`")
        return ids if eos is None or ids[-1:] == (eos,) else (*ids, eos)

    def _rendered(self, messages: Sequence[Message], place: _Place) -> tuple[int, ...]:
        """The template writes the special tokens itself, so none is added."""
        if self._encoder.tokenizer is None:
            return self._fault(place, "the model has no tokenizer: send `prompt_ids`")
        conversation = [message.model_dump() for message in messages]
        try:
            text = self._encoder.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except (TemplateError, ValueError, TypeError) as error:
            return self._fault(place, f"the chat template refuses them: {error}")
        return self.tokenized(text, place, add_special_tokens=False)

    def tokenized(self, text: str, place: _Place, *, add_special_tokens: bool) -> tuple[int, ...]:
        tokenizer = self._encoder.tokenizer
        if tokenizer is None:
            return self._fault(place, "the model has no tokenizer: send ids")
        num_tokens_at_least = len(text) // MAX_CHARACTERS_PER_TOKEN
        if num_tokens_at_least > self._encoder.max_sequence_tokens:
            return (0,) * num_tokens_at_least
        return self._checked(tokenizer.encode(text, add_special_tokens=add_special_tokens), place)

    def _checked(self, ids: Sequence[int], place: _Place) -> tuple[int, ...]:
        limit = self._encoder.vocab_size
        if ids and max(ids) >= limit:
            wrong = [position for position, token_id in enumerate(ids) if token_id >= limit]
            more = f"; {len(wrong) - 1} more here" if len(wrong) > 1 else ""
            self._fault((*place, wrong[0]), f"id {ids[wrong[0]]} is outside the vocabulary of {limit}{more}")
        return tuple(ids)

    def _fault(self, place: _Place, message: str) -> tuple[int, ...]:
        """Note a fault; one token stands in for what is wrong, so that the rest is still checked."""
        self._faults.append(FieldError(loc=list(place), msg=message))
        return (0,)


def _loss_mask(completion: Completion) -> tuple[bool, ...] | None:
    """A mask that leaves nothing out is none: equal sequences are to be equal."""
    if completion.mask is None or all(completion.mask):
        return None
    return tuple(map(bool, completion.mask))
