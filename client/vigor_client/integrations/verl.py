"""The reward for verl: a norm for each sample as its rollout ends, then ranks over the whole batch as advantages.

verl's reward managers see one sample at a time. Other workers see the other samples of its group (``uid``), and its
index within the group is not known. So the manager returns the negative norm, and the advantage estimator, which gets
all samples with their ``uid``, ranks them. This module reads fields of verl's data, and does not import verl.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast
from weakref import WeakKeyDictionary

from vigor_client.client import AsyncVigorClient
from vigor_client.errors import VigorError
from vigor_client.integrations.environment import service_of_environment
from vigor_client.ranking import rank_rewards, ranks
from vigor_client.schemas.scoring import Completion, CompletionScore, Group

if TYPE_CHECKING:
    import torch

MAX_CONCURRENT_SAMPLES = 64  # per worker; further samples wait here instead of on connections
MAX_TURNS = 2  # the turn of the prompt and that of the response
STD_EPSILON = 1e-4

logger = logging.getLogger(__name__)


class Item(Protocol):
    """The part of one row of a ``DataProto`` that is read here."""

    @property
    def batch(self) -> Mapping[str, torch.Tensor]: ...
    @property
    def non_tensor_batch(self) -> Mapping[str, Any]: ...


class Data(Protocol):
    """The part of a ``DataProto`` that is read here."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Item: ...


class Reward(TypedDict):
    """The result that verl expects of a reward manager. Every sample has the same keys."""

    reward_score: float
    reward_extra_info: dict[str, float]


class VigorRewardManager:
    """A reward manager for verl: ``reward_score`` is minus the scaled gradient norm, NaN for a sample without a norm.

    The service is at ``VIGOR_URL``, its key in ``VIGOR_API_KEY``, if it has one. Scores come from the weights it
    serves. Train with ``vigor_advantage``.

    Raises:
        ValueError: ``VIGOR_URL`` is not set; in a call, a sample of several turns has no mask of the policy's tokens.
    """

    def __init__(
        self,
        config: object = None,  # noqa: ARG002 - what verl passes to every manager
        tokenizer: object = None,  # noqa: ARG002
        compute_score: object = None,  # noqa: ARG002
        **_others: object,
    ) -> None:
        url, api_key = service_of_environment(cure="Set VIGOR_URL for the workers of verl")
        self._client = AsyncVigorClient(url, api_key=api_key)
        # One for each event loop, like the client's connections.
        self._places = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]()

    async def run_single(self, data: Data) -> Reward:
        """Return the reward of one sample; NaN, with a warning, if the client's retries do not help."""
        group = _group_of_one(data)
        try:
            loop = asyncio.get_running_loop()
            async with self._places.setdefault(loop, asyncio.Semaphore(MAX_CONCURRENT_SAMPLES)):
                response = await self._client.score([group])
        except VigorError as error:
            logger.warning("a sample has no reward: %s: %s", type(error).__name__, error)
            return _reward(None, None)
        return _reward(response.groups[0].completions[0], response.weight_version)


def vigor_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Iterable[object], **_others: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages from ranks: an advantage estimator for verl's ``register_adv_est``.

    Equals ``(r - mean(r)) / (std(r) + 1e-4)`` within each ``uid``, where r maps the ranks of minus the summed rewards
    to [-1, 1]. Samples whose reward is NaN are left out of their group and get 0, and so does a sole remaining sample.

    Args:
        token_level_rewards: [batch, response], whose sum over the response is a reward of ``VigorRewardManager``.
        response_mask: [batch, response], 1 for tokens of the response.
        index: the ``uid`` of each sample.

    Returns:
        Advantages and returns, both [batch, response] and the same.
    """
    import torch

    rewards = cast("list[float]", token_level_rewards.sum(dim=-1).tolist())  # pyright: ignore[reportUnknownMemberType] - untyped in torch
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for position, uid in enumerate(index):
        if not math.isnan(rewards[position]):
            groups[uid].append(position)
    scores = torch.zeros(len(rewards), dtype=torch.float32, device=response_mask.device)
    for positions in groups.values():
        if len(positions) > 1:
            ranked = torch.tensor(rank_rewards(ranks([-rewards[position] for position in positions])))
            scores[positions] = ((ranked - ranked.mean()) / (ranked.std() + STD_EPSILON)).to(scores)
    advantages = scores.unsqueeze(-1) * response_mask
    return advantages, advantages


def _group_of_one(data: Data) -> Group:
    if len(data) != 1:
        raise ValueError(f"a trajectory of {len(data)} sequences has no single gradient norm: nothing was sent")
    item = data[0]
    prompts, responses, mask = (item.batch[name] for name in ("prompts", "responses", "attention_mask"))
    in_prompt, in_response = mask[: len(prompts)].bool(), mask[len(prompts) :].bool()
    completion = Completion(ids=_ids(responses[in_response]), mask=_loss_mask(item, in_response))
    return Group(prompt_ids=_ids(prompts[in_prompt]), completions=[completion])


def _loss_mask(item: Item, in_response: torch.Tensor) -> list[int] | None:
    if "response_mask" in item.batch:
        return _ids(item.batch["response_mask"][in_response])
    if int(item.non_tensor_batch.get("__num_turns__") or 0) > MAX_TURNS:
        raise ValueError("verl does not tell which tokens of several turns the policy wrote: nothing was sent")
    return None


def _ids(row: torch.Tensor) -> list[int]:
    return cast("list[int]", row.tolist())  # pyright: ignore[reportUnknownMemberType] - untyped in torch


def _reward(score: CompletionScore | None, weight_version: int | None) -> Reward:
    norm = None if score is None else score.scaled_grad_norm
    return {
        "reward_score": math.nan if norm is None else -norm,
        "reward_extra_info": {
            "vigor_scaled_grad_norm": math.nan if norm is None else norm,
            "vigor_num_tokens": math.nan if score is None else float(score.num_tokens),
            "vigor_weight_version": math.nan if weight_version is None else float(weight_version),
        },
    }
