"""The reward for NeMo-RL: ranks of whole groups of sampled token ids, over a batch whose rollouts have ended.

NeMo-RL's environments get only roles and text. The sampled tokens, and which answers were cut off, are in the batch
that its training loop holds. This module reads fields of that batch, and does not import NeMo-RL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from vigor_client.chunking import score_in_chunks
from vigor_client.client import VigorClient
from vigor_client.integrations.environment import service_of_environment
from vigor_client.integrations.groups import shared_prompt
from vigor_client.schemas.scoring import Completion, Group

if TYPE_CHECKING:
    import torch

Message: TypeAlias = Mapping[str, Any]
POLICY = "assistant"


def vigor_rewards(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the rank rewards of a batch's samples, float32 [batch], for its ``total_reward``.

    The service is at ``VIGOR_URL``, its key in ``VIGOR_API_KEY``, if it has one. Scores come from the weights it
    serves. Tokens between the policy's turns, which the policy did not write, are left out of the loss.

    Args:
        batch: ``message_log`` (messages with ``role`` and ``token_ids``), ``idx`` (the same for a prompt's samples)
            and ``truncated`` of each sample.

    Raises:
        ValueError: ``VIGOR_URL`` is not set, or a sample has no answer; nothing was sent.
        InvalidGroupError: samples of one ``idx`` have different prompts; nothing was sent.
        VigorError: there are no scores after the client's retries; training stops.
    """
    import torch

    url, api_key = service_of_environment(cure="Set VIGOR_URL where NeMo-RL's driver runs")
    places = _places(batch["idx"])
    groups = [_group(batch, positions) for positions in places]
    rewards = torch.zeros(sum(map(len, places)), dtype=torch.float32)
    with VigorClient(url, api_key=api_key) as client:
        answers = score_in_chunks(groups, lambda chunk: client.score(chunk).groups)
    for positions, answer in zip(places, answers, strict=True):
        rewards[positions] = torch.tensor([score.reward for score in answer.completions])
    return rewards


def _places(indices: Sequence[Any]) -> list[list[int]]:
    """Return, for each prompt, the positions of its samples in the batch."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for position, index in enumerate(indices):
        places[int(index)].append(position)
    return list(places.values())


def _group(batch: Mapping[str, Any], positions: Sequence[int]) -> Group:
    parts = [_split(batch["message_log"][position], position) for position in positions]
    prompts = [[token for message in prompt for token in _ids(message)] for prompt, _ in parts]
    prompt_ids = shared_prompt(prompts, f"the group of samples {list(positions)}, which have one idx,")
    completions = [
        _completion(answer, is_truncated=bool(batch["truncated"][position]))
        for position, (_, answer) in zip(positions, parts, strict=True)
    ]
    return Group(prompt_ids=prompt_ids, completions=completions)


def _split(log: Sequence[Message], position: int) -> tuple[list[Message], list[Message]]:
    """Return the messages before the policy's first turn, and those from its first to its last turn."""
    start = next((number for number, message in enumerate(log) if message["role"] == POLICY), None)
    if start is None:
        raise ValueError(f"sample {position} has no message of the {POLICY}: nothing was sent")
    backwards = dropwhile(lambda message: message["role"] != POLICY, reversed(log[start:]))
    return list(log[:start]), list(backwards)[::-1]


def _completion(answer: Sequence[Message], *, is_truncated: bool) -> Completion:
    ids = [token for message in answer for token in _ids(message)]
    mask = [int(message["role"] == POLICY) for message in answer for _ in _ids(message)]
    return Completion(ids=ids, mask=None if all(mask) else mask, finish_reason="length" if is_truncated else "stop")


def _ids(message: Message) -> list[int]:
    return cast("list[int]", message["token_ids"].tolist())
