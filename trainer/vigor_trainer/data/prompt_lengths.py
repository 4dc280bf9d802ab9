"""Finds prompts that cannot be scored before the first step: longer than the context, or refused by the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vigor_client.integrations.trl.prompts import ProcessingClass, tokenize_prompts
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.errors import InvalidTaskError

if TYPE_CHECKING:
    from vigor_trainer.data.tasks import Example

_MAX_LISTED_ROWS = 10


def prompt_counter(tokenizer: ProcessingClass, chat_template_kwargs: Mapping[str, Any]) -> Callable[[Prompt], int]:
    """Return a function that counts the tokens of a prompt as TRL renders it to generate from."""

    def count(prompt: Prompt) -> int:
        (ids,) = tokenize_prompts(tokenizer, [prompt], chat_template_kwargs)
        return len(ids)

    return count


def fitting_prompts(
    examples: Sequence[Example],
    num_tokens: Callable[[Prompt], int],
    *,
    max_prompt_tokens: int,
    overlong: Literal["refuse", "skip"],
    report: Callable[[str], None],
) -> list[Example]:
    """Return the examples whose prompt has at most ``max_prompt_tokens`` tokens, in order.

    ``report`` is called with a line of text if any are skipped.

    Raises:
        InvalidTaskError: a prompt cannot be tokenized or is longer; names the first rows. With ``skip``, only if no
            prompt is left.
    """
    fitting: list[Example] = []
    faults: list[str] = []
    for example in examples:
        count = _counted(example, num_tokens)
        if 0 < count <= max_prompt_tokens:
            fitting.append(example)
        else:
            faults.append(f"{example.place}: {f'{count:,} tokens' if count else 'no token'}")
    if faults and (overlong == "refuse" or not fitting):
        raise InvalidTaskError(
            f"{len(faults)} of {len(examples)} prompts are empty or longer than {max_prompt_tokens:,} tokens, which is "
            "--max_prompt_length, or what --max_completion_length leaves of the service's context: "
            f"{_listed(faults)}; give a smaller --max_completion_length, or --overlong_prompts skip"
        )
    if faults:
        report(f"skipped {len(faults)} of {len(examples)} prompts that do not fit: {_listed(faults)}")
    return fitting


def _counted(example: Example, num_tokens: Callable[[Prompt], int]) -> int:
    try:
        return num_tokens(example.prompt)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InvalidTaskError(f"{example.place}: the tokenizer's chat template refuses the prompt: {said}") from error


def _listed(faults: Sequence[str]) -> str:
    more = len(faults) - _MAX_LISTED_ROWS
    return "; ".join([*faults[:_MAX_LISTED_ROWS], *([f"and {more} more"] if more > 0 else [])])
