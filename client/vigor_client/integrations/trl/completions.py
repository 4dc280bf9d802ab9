"""Rules for sampled completions: how one ended, and which of its tokens are in the loss.

TRL's own trainers and `vigor-trainer` share these rules. Works on token ids; reads only two attributes of a trainer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vigor_client.integrations.trl.errors import WrongAnswerError
from vigor_client.schemas.scoring import Completion, CompletionScore, FinishReason


def end_token_ids(trainer: object, processing_class: object) -> frozenset[int]:
    """Return the token ids that end a completion, by TRL's own rule: every end-of-sequence token, and padding.

    TRL counts and masks truncated completions by ``[*trainer.eos_token_ids, pad_token_id]``. Where the
    trainer does not expose them (``AsyncGRPOTrainer``), the end-of-sequence token is that of the tokenizer.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # a processor holds a tokenizer
    eos_ids = getattr(trainer, "eos_token_ids", [getattr(tokenizer, "eos_token_id", None)])
    ids = [*eos_ids, getattr(tokenizer, "pad_token_id", None)]
    return frozenset(token_id for token_id in ids if token_id is not None)


def finish_reason(completion_ids: Sequence[int], ends: Collection[int]) -> FinishReason:
    """Return `stop` if the last token is one of ``ends``, else `length`, as for a completion without tokens."""
    return "stop" if completion_ids and completion_ids[-1] in ends else "length"


def refuse_other_tokens(
    group: str, completions: Sequence[Completion], scores: Sequence[CompletionScore], *, first: int = 0
) -> None:
    """Check that, for every completion with a norm, the service counted as many tokens as were sampled.

    The client has checked weights, reward, groups and their sizes. ``first`` is the index within the group of the first
    completion.

    Raises:
        WrongAnswerError: the number of tokens differs; names the first such completion.
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
