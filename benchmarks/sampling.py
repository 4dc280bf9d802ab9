"""Real groups: questions, and completions sampled by the policy itself, kept so that every run scores the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vigor_service.engine.loading.loading import Policy
from vigor_service.engine.sequences import TokenSequence
from vigor_trainer.data.tasks import REASONING_GYM_PREFIX, TaskSource, load_task

_TASKS = (
    "chain_sum", "simple_equations", "letter_counting", "spell_backward", "leg_counting", "gsm_symbolic",
    "calendar_arithmetic", "family_relationships",
)  # fmt: skip
_OPEN_QUESTIONS = (
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "What should I cook with rice, eggs and spinach?",
    "Explain to a child what a computer program is.",
    "Give me three tips for sleeping better.",
    "Tell me about the city of Lisbon.",
    "Write a polite email that declines an invitation.",
    "What are the advantages of learning a second language?",
)


class StaleGroupsError(Exception):
    """Kept groups were sampled by a model other than the one that scores them; the message says what to do."""


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A question and the policy's answers, as token ids; the answers are ranked together."""

    question: str
    sequences: tuple[TokenSequence, ...]


def questions() -> Iterator[str]:
    """Yield 24 questions: of every three, two from a reasoning-gym task and one without a single right answer."""
    for task, open_question in zip(_TASKS, _OPEN_QUESTIONS, strict=True):
        source = TaskSource(REASONING_GYM_PREFIX + task, size=2, seed=0)
        yield from (row["prompt"] for row in load_task(source, has_chat_template=False).to_list())
        yield open_question


def sample_groups(policy: Policy, *, num_completions: int, max_new_tokens: int, seed: int) -> list[SampledGroup]:
    """Sample completions of every question at temperature 1, without top-k and top-p: from the policy itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [_sample_group(policy, question, num_completions, max_new_tokens) for question in questions()]


def _sample_group(policy: Policy, question: str, num_completions: int, max_new_tokens: int) -> SampledGroup:
    text = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    prompt_ids = tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType] - a string, since it is not tokenized
    prompt_BL = torch.tensor([prompt_ids] * num_completions, device=policy.model.device)
    sampled_BL = policy.model.generate(  # pyright: ignore[reportCallIssue] - transformers mixes it in at run time
        prompt_BL,
        attention_mask=torch.ones_like(prompt_BL),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
    )
    completions = [_until(ids, policy.tokenizer.eos_token_id) for ids in sampled_BL[:, len(prompt_ids) :].tolist()]
    return SampledGroup(question, tuple(TokenSequence(prompt_ids, completion) for completion in completions))


def _until(ids: list[int], end_id: object) -> tuple[int, ...]:
    """Return the ids up to and including the first end token; the rest is padding."""
    length = next((index + 1 for index, token_id in enumerate(ids) if token_id == end_id), len(ids))
    return tuple(ids[:length])


def save_groups(path: Path, groups: Sequence[SampledGroup], *, model: str, how: str) -> None:
    """Write the groups as JSON, one per line."""
    lines = [
        json.dumps(
            {
                "question": group.question,
                "prompt_ids": group.sequences[0].prompt_ids,
                "completions": [sequence.completion_ids for sequence in group.sequences],
            }
        )
        for group in groups
    ]
    head = f'{{"model": {json.dumps(model)}, "how": {json.dumps(how)}, "groups": [\n'
    path.write_text(head + ",\n".join(lines) + "\n]}\n")


def load_groups(path: Path, *, model: str) -> tuple[list[SampledGroup], str]:
    """Return what ``save_groups`` wrote: the groups, and how they were sampled.

    Raises:
        StaleGroupsError: another model sampled them.
    """
    kept = json.loads(path.read_text())
    if kept["model"] != model:
        raise StaleGroupsError(f"{path} was sampled from {kept['model']}, not from {model}: --sample makes it anew")
    groups = [
        SampledGroup(
            group["question"],
            tuple(TokenSequence(tuple(group["prompt_ids"]), tuple(ids)) for ids in group["completions"]),
        )
        for group in kept["groups"]
    ]
    return groups, kept["how"]
