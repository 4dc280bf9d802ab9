"""OpenRLHF's remote reward model: the shapes of its requests and responses, and the rewards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field, model_validator

from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import MAX_GROUPS, CompletionScore
from vigor_service.compat.text_samples import RewardRequest, TextSamples
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import QueueFullError, ServiceError

PATIENCE_SECONDS = 150.0
"""Maximum time that a sample waits for room in a full queue. OpenRLHF gives up on a call after 180 seconds and five
tries."""
WORST_REWARD = -1.0

_logger = logging.getLogger(__name__)


class OpenRLHFRequest(RewardRequest):
    """``POST /openrlhf/get_reward``, as OpenRLHF 0.11 sends it with one sample, and 0.9 with many."""

    query: list[str] = Field(
        max_length=MAX_GROUPS, description="Prompt and response as one text, with special tokens written out."
    )
    prompts: list[str] = Field(max_length=MAX_GROUPS)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.query) != len(self.prompts):
            raise ValueError(
                f"{len(self.query)} `query` but {len(self.prompts)} `prompts`: send one prompt for each query"
            )
        for index, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if not prompt or not query.startswith(prompt):
                raise ValueError(
                    f"`query` {index} does not begin with its prompt, so the start of the response is unknown"
                )
        return self


class OpenRLHFRewards(BaseModel):
    """The answer that OpenRLHF expects: finite numbers, as many as there are queries."""

    rewards: list[float] = Field(description="Rank reward of each query, from -1 (worst) to 1 (best).")
    scores: list[float] = Field(description="The rewards scaled to 0..1, for OpenRLHF's dynamic filter.")
    extra_logs: dict[str, list[float]]


async def openrlhf_rewards(request: OpenRLHFRequest, samples: TextSamples, *, group_size: int) -> OpenRLHFRewards:
    """Return the rewards and logs for OpenRLHF. A sample without a score gets the worst reward, and a flag in the logs.

    This is not an error response, because OpenRLHF would swallow one after five seconds and end its run without giving
    the reason. All samples of a group that failed have the same reward, so they do not change the policy.

    Raises:
        QueueFullError: too many samples are held for this one to wait.
    """
    pairs = zip(request.prompts, request.query, strict=True)
    scoring = [_score_or_log(samples, prompt, query[len(prompt) :], group_size) for prompt, query in pairs]
    del request, pairs
    tasks = [asyncio.create_task(score) for score in scoring]
    try:
        return _rewards(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _score_or_log(samples: TextSamples, prompt: str, text: str, group_size: int) -> CompletionScore | None:
    try:
        sequence = await samples.encode(GivenPrompt(prompt=prompt), text)
        del prompt, text
        return await _score_patiently(samples, sequence, group_size)
    except QueueFullError:
        raise
    except ServiceError as error:
        return _without_score(error)


async def _score_patiently(samples: TextSamples, sequence: TokenSequence, group_size: int) -> CompletionScore | None:
    """Return the sample's score; None if the queue had no room for it in time."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + PATIENCE_SECONDS
    while True:
        try:
            return await samples.score(sequence, group_size=group_size)
        except QueueFullError as error:
            pause_seconds = error.retry_after_seconds or 1.0
            if loop.time() + pause_seconds > ends_at:
                return _without_score(error)
        with samples.held(sequence):
            await asyncio.sleep(pause_seconds)


def _without_score(error: ServiceError) -> None:
    _logger.warning("sample_without_score", extra={"error": type(error).__name__, "detail": error.detail})


def _rewards(scores: Sequence[CompletionScore | None]) -> OpenRLHFRewards:
    rewards = [WORST_REWARD if score is None else score.reward for score in scores]
    logs = {
        "vigor_failed": [float(score is None) for score in scores],
        "vigor_num_tokens": [0.0 if score is None else float(score.num_tokens) for score in scores],
        "vigor_scaled_grad_norm": [(score and score.scaled_grad_norm) or 0.0 for score in scores],
    }
    return OpenRLHFRewards(
        rewards=rewards,
        scores=[(reward + 1) / 2 for reward in rewards],
        extra_logs=logs if scores else {},
    )
