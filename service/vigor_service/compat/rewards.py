"""Rewards for trainers that send text, one sample at a time and without a group: OpenRLHF and slime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import Completion, CompletionScore
from vigor_service.compat.reward_schemas import OpenRLHFRequest, OpenRLHFRewards, SlimeRequest
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import QueueFullError, ServiceError
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.sample_groups.by_prompt import PromptGroups
from vigor_service.sample_groups.samples import held_bytes
from vigor_service.scoring.encoding import RequestEncoder

PATIENCE_SECONDS = 150.0
"""How long a sample waits for room in a full queue: OpenRLHF gives up on a call after 180 seconds and five tries."""
WORST_REWARD = -1.0

_logger = logging.getLogger(__name__)


class CompatRewards:
    """Answers in each trainer's own form. Samples of one prompt are one group.

    A text is dropped as soon as its token ids are known: the others of its group may be awaited for long.
    """

    def __init__(
        self, encoder: RequestEncoder, assembly: GroupAssembly, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._encoder = encoder
        self._assembly = assembly
        self._groups = PromptGroups(assembly)
        self._patience_seconds = patience_seconds

    async def openrlhf(self, request: OpenRLHFRequest, *, group_size: int) -> OpenRLHFRewards:
        """Return what OpenRLHF logs and trains with; a sample without a score gets the worst reward, and a flag.

        OpenRLHF swallows a refusal after five seconds and ends its run without its reason. A group that failed has the
        same reward for all of its samples, so it moves nothing.

        Raises:
            QueueFullError: too many samples are held for this one to wait.
        """
        pairs = zip(request.prompts, request.query, strict=True)
        scoring = [self._score_or_log(prompt, query[len(prompt) :], group_size) for prompt, query in pairs]
        del request, pairs
        tasks = [asyncio.create_task(score) for score in scoring]
        try:
            return _rewards(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def slime(self, request: SlimeRequest, *, group_size: int) -> float:
        """Return the rank reward. Refusals go out as they are: slime tries ten times, with pauses.

        Raises:
            ServiceError: there is no score; says why.
        """
        sequence = await self._encode(request.given_prompt(), request.response)
        del request
        return (await self._groups.score(sequence, group_size=group_size)).completion.reward

    async def _score_or_log(self, prompt: str, text: str, group_size: int) -> CompletionScore | None:
        try:
            sequence = await self._encode(GivenPrompt(prompt=prompt), text)
            del prompt, text
            return await self._score_patiently(sequence, group_size)
        except QueueFullError:
            raise
        except ServiceError as error:
            return _without_score(error)

    async def _score_patiently(self, sequence: TokenSequence, group_size: int) -> CompletionScore | None:
        """Return its score, None where the queue had no place for it in time."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._patience_seconds
        while True:
            try:
                return (await self._groups.score(sequence, group_size=group_size)).completion
            except QueueFullError as error:
                pause_seconds = error.retry_after_seconds or 1.0
                if loop.time() + pause_seconds > ends_at:
                    return _without_score(error)
            with self._assembly.holding(held_bytes(sequence)):
                await asyncio.sleep(pause_seconds)

    async def _encode(self, prompt: GivenPrompt, text: str) -> TokenSequence:
        """Special tokens are written out, the end too: a response without one was cut off, and gets none."""
        completion = Completion(text=text, finish_reason="length")
        return await self._encoder.encode_sample(prompt, completion, add_special_tokens=False)


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
