"""Tokenizes prompts as TRL does before it generates, for reward functions and for counting tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Text = str | list[dict[str, Any]]
"""A prompt or a completion: text, or messages."""


class ProcessingClass(Protocol):
    """The part of the trainer's ``processing_class`` that is used here, typed as in transformers' tokenizers."""

    def __getattr__(self, key: str) -> Any: ...  # noqa: ANN401 - how it has `eos_token_id`

    def __call__(self, *, text: Any) -> Any: ...  # noqa: ANN401

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...  # noqa: ANN401


def tokenize_prompts(
    processing_class: ProcessingClass, prompts: Sequence[Text], chat_template_kwargs: Mapping[str, Any]
) -> list[list[int]]:
    """Return the token ids that TRL generates from, by the same calls as in `GRPOTrainer._tokenize_prompts`.

    Prompts are all text or all messages. `trl_shape` checks that TRL still makes these calls.
    """
    if isinstance(prompts[0], str):
        return processing_class(text=list(prompts))["input_ids"]
    return processing_class.apply_chat_template(
        conversation=list(prompts),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **chat_template_kwargs,
    )["input_ids"]
