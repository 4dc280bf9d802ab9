"""The reward function for slime, given by ``--group-rm --custom-rm-path``: scores whole groups of sampled token ids.

Reads fields of slime's samples, and does not import slime.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from vigor_client.client import AsyncVigorClient
from vigor_client.integrations.environment import service_of_environment
from vigor_client.integrations.groups import shared_prompt
from vigor_client.schemas.scoring import Completion, FinishReason, Group

FINISH_REASONS: dict[str, FinishReason] = {"completed": "stop", "truncated": "length"}


class Arguments(Protocol):
    """The part of slime's arguments that is read here."""

    @property
    def rm_url(self) -> str | None: ...


class Sample(Protocol):
    """The part of slime's ``Sample`` that is read here.

    ``tokens`` holds the tokens of the prompt, then ``response_length`` tokens of the response.
    """

    @property
    def group_index(self) -> int | None: ...
    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def response_length(self) -> int: ...
    @property
    def loss_mask(self) -> Sequence[int] | None: ...
    @property
    def status(self) -> Enum: ...


async def vigor_group_reward(args: Arguments, samples: Sequence[Sample], **_options: object) -> list[float]:
    """Return the rank rewards of one group, a reward per sample.

    The service is at ``--rm-url``, else at ``VIGOR_URL``; ``VIGOR_API_KEY`` is its key, if it has one. Scores
    come from the weights it serves.

    Raises:
        ValueError: there is no URL, or a response is not finished.
        InvalidGroupError: the responses answer different prompts.
        VigorError: there are no scores after the client's retries; slime stops.
    """
    url, api_key = service_of_environment(url=args.rm_url, cure="Give --rm-url, or set VIGOR_URL")
    async with AsyncVigorClient(url, api_key=api_key) as client:
        response = await client.score([_group(samples)])
    return [score.reward for score in response.groups[0].completions]


def _group(samples: Sequence[Sample]) -> Group:
    prompts = [list(sample.tokens[: _prompt_length(sample)]) for sample in samples]
    prompt = shared_prompt(prompts, f"group {samples[0].group_index}")
    return Group(prompt_ids=prompt, completions=[_completion(sample) for sample in samples])


def _completion(sample: Sample) -> Completion:
    status = str(sample.status.value)
    if status not in FINISH_REASONS:
        raise ValueError(f"a response of group {sample.group_index} is {status}; only finished responses can be ranked")
    mask = None if sample.loss_mask is None else list(sample.loss_mask)
    ids = list(sample.tokens[_prompt_length(sample) :])
    return Completion(ids=ids, mask=mask, finish_reason=FINISH_REASONS[status])


def _prompt_length(sample: Sample) -> int:
    return len(sample.tokens) - sample.response_length  # not tokens[:-0], where a response is empty
