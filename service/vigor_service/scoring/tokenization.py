"""Turns a score request into token sequences, and lists all faults of the request at once.

Runs in a worker thread; knows no weights and no scores.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import MAX_COMPLETIONS, Completion, Group, ScoreRequest
from vigor_service.engine.sequences import PromptIds, TokenSequence
from vigor_service.errors import PayloadTooLargeError, SequenceTooLongError, invalid_request
from vigor_service.scoring.chat_prompts import ChatPromptError
from vigor_service.scoring.continuation import Continuation, UntokenizableError
from vigor_service.scoring.encoded import EncodedGroup, EncodedRequest
from vigor_service.scoring.text_tokens import TextTokens, Tokenizer
from vigor_service.threads.work_limit import checkpoint

MAX_REQUEST_TOKENS = 1 << 24

_NOTHING_SCORED = "nothing was scored"
_STAND_IN = (0,)
"""Placeholder token for faulty input, so that the rest of the request is still checked."""
_Place = tuple[str | int, ...]


class Encoder:
    """Turns requests into sequences for one model. Without a tokenizer it accepts only token ids.

    Several threads may encode at once. Work that may take long calls ``checkpoint``, which can end it.

    Args:
        generation_ends: tokens that end a completion besides the tokenizer's own EOS.
        max_request_tokens: maximum number of tokens of one request, each completion counted with its prompt.
        media_token_ids: tokens that stand for an image, a video or a sound. They are refused, because requests carry
            only text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_sequence_tokens: int,
        *,
        generation_ends: Sequence[int] = (),
        max_request_tokens: int = MAX_REQUEST_TOKENS,
        media_token_ids: Collection[int] = (),
    ) -> None:
        self.texts = TextTokens(tokenizer, max_sequence_tokens=max_sequence_tokens, generation_ends=generation_ends)
        self.vocab_size = vocab_size
        self.max_sequence_tokens = max_sequence_tokens
        self.max_request_tokens = max_request_tokens
        self.media_token_ids = frozenset(media_token_ids)
        self._shared_ids: dict[int, int] = {}

    def encode(self, request: ScoreRequest) -> EncodedRequest:
        """Return the request as token sequences.

        Raises:
            InvalidRequestError: the request has ids that are outside the vocabulary or stand for media, or texts that
                cannot be tokenized; the error lists their places.
            SequenceTooLongError: sequences exceed the model's limit, and nothing else is wrong.
            PayloadTooLargeError: the request has more completions or tokens, or takes longer, than one request may.
            ClientGoneError: as ``checkpoint``.
        """
        _refuse_many_completions(request)
        encoding = _Encoding(self)
        groups = [encoding.group(group, ("groups", index)) for index, group in enumerate(request.groups)]
        encoding.refuse_faults()
        return EncodedRequest(request, groups)

    def encode_sample(
        self, prompt: GivenPrompt, completion: Completion, *, add_special_tokens: bool = True
    ) -> TokenSequence:
        """Return one completion with its prompt. Equal ids share one object, since samples may be held for long.

        So an id costs 8 bytes. Places of faults are within ``completion`` and the fields of the prompt.
        ``add_special_tokens`` applies to a prompt that is text. Raises as ``encode``.
        """
        encoding = _Encoding(self, shared_ids=self._shared_ids, add_special_tokens=add_special_tokens)
        sequence = encoding.sequence(encoding.behind(prompt, ()), completion, ("completion",))
        encoding.refuse_faults()
        return sequence


class _Behind:
    """The prompt of the completions of one group."""

    def __init__(self, prompt_ids: PromptIds, encoder: Encoder, *, in_chat: bool) -> None:
        self.prompt_ids = prompt_ids
        self.in_chat = in_chat
        self.media_token_ids = encoder.media_token_ids.intersection(prompt_ids) if encoder.media_token_ids else None
        self._texts = encoder.texts

    @cached_property
    def continuation(self) -> Continuation:
        """Tokenizes completions of this prompt; made at first use. Raises UntokenizableError without a tokenizer."""
        return self._texts.continuation(self.prompt_ids)


class _Encoding:
    """One pass over one request, which continues after a fault.

    With ``shared_ids``, equal ids are replaced by one shared object. It grows to at most the size of the vocabulary.
    """

    def __init__(
        self, encoder: Encoder, *, shared_ids: dict[int, int] | None = None, add_special_tokens: bool = True
    ) -> None:
        self._encoder = encoder
        self._shared_ids = shared_ids
        self._add_special_tokens = add_special_tokens
        self._faults: list[FieldError] = []
        self._overlong: list[tuple[_Place, int]] = []
        self._prompts: dict[PromptIds, PromptIds] = {}
        self._num_tokens = 0

    def group(self, group: Group, place: _Place) -> EncodedGroup:
        behind = self.behind(group, place)
        sequences = tuple(
            self.sequence(behind, completion, (*place, "completions", position))
            for position, completion in enumerate(group.completions)
        )
        is_truncated = tuple(completion.finish_reason == "length" for completion in group.completions)
        return EncodedGroup(group.id, sequences, is_truncated)

    def behind(self, prompt: GivenPrompt, place: _Place) -> _Behind:
        """Return the prompt in the form that completions need. Equal prompts of a request share one object."""
        prompt_ids = PromptIds(self._prompt(prompt, place))
        prompt_ids = self._prompts.setdefault(prompt_ids, prompt_ids)
        return _Behind(prompt_ids, self._encoder, in_chat=prompt.messages is not None)

    def sequence(self, behind: _Behind, completion: Completion, place: _Place) -> TokenSequence:
        checkpoint()
        ids = self._completion(behind, completion, place)
        num_tokens = len(behind.prompt_ids) + len(ids)
        if num_tokens > self._encoder.max_sequence_tokens:
            self._overlong.append((place, num_tokens))
            return TokenSequence(behind.prompt_ids, ())
        self._count(num_tokens, place)
        self._note_media(behind, ids, place)
        return TokenSequence(behind.prompt_ids, ids, _loss_mask(completion))

    def refuse_faults(self) -> None:
        limit = self._encoder.max_sequence_tokens
        overlong = [
            FieldError(loc=list(place), msg=f"{length} tokens with its prompt, the limit is {limit}")
            for place, length in self._overlong
        ]
        if self._faults:
            raise invalid_request([*self._faults, *overlong], consequence=_NOTHING_SCORED)
        if self._overlong:
            place, length = self._overlong[0]
            group, completion = place[1::2] or (0, 0)  # the place of a sample has no indices
            raise SequenceTooLongError(
                f"{len(overlong)} sequences are longer than the model's {limit} tokens; {_NOTHING_SCORED}",
                errors=overlong,
                group=group,
                completion=completion,
                length=length,
                limit=limit,
            )

    def _prompt(self, prompt: GivenPrompt, place: _Place) -> tuple[int, ...]:
        """Return the ids of a prompt. A prompt without ids is a fault."""
        field = next(name for name in ("prompt_ids", "prompt", "messages") if getattr(prompt, name) is not None)
        try:
            ids = self._checked(self._prompt_ids(prompt), (*place, field))
        except ChatPromptError as error:
            return self._fault((*place, error.field), str(error))
        except UntokenizableError as error:
            return self._fault((*place, field), str(error))
        return ids or self._fault((*place, field), "has no token")

    def _prompt_ids(self, prompt: GivenPrompt) -> Sequence[int]:
        if prompt.prompt_ids is not None:
            return prompt.prompt_ids
        if prompt.prompt is not None:
            return self._encoder.texts.text_prompt(prompt.prompt, add_special_tokens=self._add_special_tokens)
        return self._encoder.texts.chat_prompt(prompt)

    def _completion(self, behind: _Behind, completion: Completion, place: _Place) -> tuple[int, ...]:
        """Return the ids of a completion. Text is a finished completion unless its finish reason is ``length``."""
        if completion.text is None:
            return self._checked(completion.ids or [], (*place, "ids"))
        try:
            ids = self._encoder.texts.completion(
                behind.continuation,
                completion.text,
                in_chat=behind.in_chat,
                is_cut_off=completion.finish_reason == "length",
            )
        except UntokenizableError as error:
            return self._fault((*place, "text"), str(error))
        return self._checked(ids, (*place, "text"))

    def _checked(self, ids: Sequence[int], place: _Place) -> tuple[int, ...]:
        """Return the checked ids. More ids than the model accepts are refused later, so placeholders stand for them."""
        if len(ids) > self._encoder.max_sequence_tokens:
            return _STAND_IN * len(ids)
        limit = self._encoder.vocab_size
        if ids and max(ids) >= limit:
            wrong = [position for position, token_id in enumerate(ids) if token_id >= limit]
            more = f"; {len(wrong) - 1} more here" if len(wrong) > 1 else ""
            self._fault((*place, wrong[0]), f"id {ids[wrong[0]]} is outside the vocabulary of {limit}{more}")
            return tuple(token_id if token_id < limit else 0 for token_id in ids)
        return tuple(ids) if self._shared_ids is None else tuple(map(self._shared_ids.setdefault, ids, ids))

    def _count(self, num_tokens: int, place: _Place) -> None:
        """Refuse the request as soon as it is too large, to save the time for the rest."""
        self._num_tokens += num_tokens
        limit = self._encoder.max_request_tokens
        if self._num_tokens > limit:
            raise PayloadTooLargeError(
                f"the request has more than {limit} tokens, each completion counted with its prompt; "
                f"{_NOTHING_SCORED}: send fewer groups at once",
                errors=[FieldError(loc=list(place), msg=f"{self._num_tokens} tokens up to here, the limit is {limit}")],
                limit=limit,
            )

    def _note_media(self, behind: _Behind, ids: Sequence[int], place: _Place) -> None:
        if behind.media_token_ids is None:
            return
        if found := sorted(behind.media_token_ids | self._encoder.media_token_ids.intersection(ids)):
            self._fault(
                place,
                f"it or its prompt has token {found[0]}, which stands for an image or a sound: only text can be scored",
            )

    def _fault(self, place: _Place, message: str) -> tuple[int, ...]:
        self._faults.append(FieldError(loc=list(place), msg=message))
        return _STAND_IN


def _refuse_many_completions(request: ScoreRequest) -> None:
    num_completions = sum(len(group.completions) for group in request.groups)
    if num_completions > MAX_COMPLETIONS:
        raise PayloadTooLargeError(
            f"the request has {num_completions} completions, the limit is {MAX_COMPLETIONS}; {_NOTHING_SCORED}: "
            "send fewer groups at once",
            limit=MAX_COMPLETIONS,
        )


def _loss_mask(completion: Completion) -> tuple[bool, ...] | None:
    """Return the loss mask. A mask that leaves nothing out becomes None, so that equal sequences compare equal."""
    if completion.mask is None or all(completion.mask):
        return None
    return tuple(map(bool, completion.mask))
