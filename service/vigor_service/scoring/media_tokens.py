"""Tokens that stand for an image, a video or a sound. Requests bring none of these: such a prompt is not scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from vigor_client.schemas.problems import FieldError
from vigor_service.errors import invalid_request
from vigor_service.scoring.tokenization import EncodedGroup
from vigor_service.threads.work_limit import checkpoint


def refuse_media_tokens(groups: Sequence[EncodedGroup], media_token_ids: Collection[int]) -> None:
    """Refuse groups of which a prompt or a completion has such a token.

    Raises:
        InvalidRequestError: names each completion's place, with its prompt.
    """
    if not media_token_ids:
        return
    faults = list(_faults(groups, frozenset(media_token_ids)))
    if faults:
        raise invalid_request(faults, consequence="nothing was scored")


def _faults(groups: Sequence[EncodedGroup], media_token_ids: frozenset[int]) -> Iterator[FieldError]:
    for group_index, group in enumerate(groups):
        in_prompt = media_token_ids.intersection(group.sequences[0].prompt_ids)
        for index, sequence in enumerate(group.sequences):
            checkpoint()
            if found := sorted(in_prompt | media_token_ids.intersection(sequence.completion_ids)):
                message = f"it or its prompt has token {found[0]}, which stands for an image or a sound: score text"
                yield FieldError(loc=["groups", group_index, "completions", index], msg=message)
