"""What a trainer knows of a sampled completion: how it ended, and which of its tokens are in the loss.

The one rule of both TRL's own trainers and `vigor-trainer`. Knows ids, and no trainer but by two attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vigor_client.integrations.trl.errors import WrongAnswerError
from vigor_client.schemas.scoring import Completion, CompletionScore, FinishReason


def end_token_ids(trainer: object, processing_class: object) -> frozenset[int]:
    """Return what ends a completion, by TRL's own rule: every end-of-sequence token, and padding.

    TRL counts and masks truncated completions by ``[*trainer.eos_token_ids, pad_token_id]``. Without a trainer that
    shows them (``AsyncGRPOTrainer``) the end-of-sequence token is the tokenizer's own.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # a processor holds one
    eos_ids = getattr(trainer, "eos_token_ids", [getattr(tokenizer, "eos_token_id", None)])
    ids = [*eos_ids, getattr(tokenizer, "pad_token_id", None)]
    return frozenset(token_id for token_id in ids if token_id is not None)


def finish_reason(completion_ids: Sequence[int], ends: Collection[int]) -> FinishReason:
    """Return `stop` if the last token is one of ``ends``, else `length`; so is a completion without tokens."""
    return "stop" if completion_ids and completion_ids[-1] in ends else "length"


def refuse_other_tokens(
    group: str, completions: Sequence[Completion], scores: Sequence[CompletionScore], *, first: int = 0
) -> None:
    """Make sure that the service counted the tokens that were sampled, in every completion that has a norm.

    The client has checked weights, reward, groups and their sizes. ``first`` is the index within the group of the first
    completion.

    Raises:
        WrongAnswerError: another number of tokens; names the first completion.
    """
    for index, (completion, score) in enumerate(zip(completions, scores, strict=True), start=first):
        num_tokens = _num_loss_tokens(completion)
        if score.status == "ok" and score.num_tokens != num_tokens:
            raise WrongAnswerError(
                f"group {group}, completion {index}: the service scored {score.num_tokens} tokens of the "
                f"{num_tokens} that were sampled; no reward of this round is used"
            )


def _num_loss_tokens(completion: Completion) -> int:
    return len(completion.ids or []) if completion.mask is None else sum(completion.mask)
