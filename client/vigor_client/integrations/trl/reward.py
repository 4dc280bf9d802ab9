"""Reward functions for TRL's own GRPOTrainer and AsyncGRPOTrainer.

TRL calls them in every process with the completions of that process only; groups lie end to end across the processes.
Prompts are tokenized as TRL does it, and completions are sent as the sampled token ids. The functions can be pickled,
since AsyncGRPOTrainer passes them to another process: they hold a URL and connect for each call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from vigor_client.client import AsyncVigorClient
from vigor_client.errors import VigorError
from vigor_client.integrations.trl.completions import end_token_ids, finish_reason
from vigor_client.integrations.trl.distributed import Processes, torch_processes
from vigor_client.integrations.trl.group_slices import parts_of_slice
from vigor_client.integrations.trl.metrics import NORM_COLUMN, RANK_COLUMN, log_metrics, score_metrics
from vigor_client.integrations.trl.prompts import ProcessingClass, Text, tokenize_prompts
from vigor_client.integrations.trl.publisher import TrainerState
from vigor_client.integrations.trl.round import Round, VersionedScore, score_round
from vigor_client.integrations.trl.trl_shape import READ_BY_ADAPTERS, check_installed_trl
from vigor_client.publishing.publish import PublishResult
from vigor_client.ranking import TieRule
from vigor_client.schemas.scoring import Completion, RewardName, TruncatedRule, compute_for

UNSCORABLE_COLUMNS = ("image", "images", "environments")

Rewards = list[float | None]

logger = logging.getLogger(__name__)


class CurrentWeights(Protocol):
    """The part of a ``WeightPublisher`` that is used here."""

    @property
    def is_training(self) -> bool: ...

    def at(self, step: int) -> PublishResult: ...


class _Reward:
    def __init__(
        self,
        url: str,
        processing_class: ProcessingClass,
        num_generations: int,
        *,
        num_generations_eval: int | None = None,
        weights: CurrentWeights | None = None,
        eos_token_ids: Collection[int] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reward: RewardName = "vigor",
        ties: TieRule = "average",
        truncated: TruncatedRule = "score",
        on_failure: Literal["none", "raise"] = "none",
        connect: Callable[[str], AsyncVigorClient] = AsyncVigorClient,
        processes: Callable[[], Processes] = torch_processes,
    ) -> None:
        check_installed_trl(READ_BY_ADAPTERS)
        if num_generations < 1 or num_generations_eval == 0:
            raise ValueError(f"{num_generations} and {num_generations_eval} generations per prompt: give 1 or more")
        if on_failure not in ("none", "raise"):
            raise ValueError(f"on_failure is {on_failure!r}; give 'none' or 'raise'")
        if num_generations_eval not in (None, num_generations) and weights is None:
            raise ValueError(
                "num_generations_eval differs from num_generations; give the WeightPublisher as weights, which tells "
                "when the trainer evaluates"
            )
        self.__name__ = reward  # TRL logs rewards/<name>/mean
        self._url = url
        self._processing_class = processing_class
        self._num_generations = num_generations
        self._num_generations_eval = num_generations_eval or num_generations
        self._weights = weights
        self._eos_token_ids = eos_token_ids
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._options: dict[str, object] = {
            "compute": compute_for(reward),
            "reward": reward,
            "ties": ties,
            "truncated": truncated,
        }
        self._on_failure = on_failure
        self._connect = connect
        self._find_processes = processes
        self._processes: Processes | None = None
        self._num_calls = 0

    def _round(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[list[int]],
        step: int | None,
        columns: Mapping[str, object],
    ) -> Round:
        """Return the round to score. Every process calls this equally often, so the count identifies the call."""
        _refuse_unscorable(completions, columns)
        trainer = _trainer_of(columns)
        self._refuse_other_prompts(trainer)
        ends = self._ends(trainer)
        if self._processes is None:
            self._processes = self._find_processes()
        self._num_calls += 1
        group_size = self._group_size()
        return Round(
            name=f"{self._processes.run}/step{step}/call{self._num_calls}",
            group_size=group_size,
            parts=parts_of_slice(
                len(completion_ids),
                group_size=group_size,
                rank=self._processes.rank,
                num_processes=self._processes.count,
            ),
            prompt_ids=tokenize_prompts(self._processing_class, prompts, self._chat_template_kwargs),
            completions=[Completion(ids=ids, finish_reason=finish_reason(ids, ends)) for ids in completion_ids],
        )

    def _refuse_other_prompts(self, trainer: object) -> None:
        for name in ("tools", "rollout_func"):
            if getattr(trainer, name, None):
                raise ValueError(
                    f"the trainer has {name}, about which TRL tells a reward function too little; use vigor-trainer"
                )
        theirs = getattr(trainer, "chat_template_kwargs", self._chat_template_kwargs)
        if theirs != self._chat_template_kwargs:
            raise ValueError(f"the trainer renders prompts with chat_template_kwargs {theirs}: give the same here")

    def _group_size(self) -> int:
        is_evaluating = self._weights is not None and not self._weights.is_training
        return self._num_generations_eval if is_evaluating else self._num_generations

    def _ends(self, trainer: object) -> Collection[int]:
        """Return the token ids that end a completion: the given ones, else those that TRL counts as its end."""
        given = self._eos_token_ids
        return end_token_ids(trainer, self._processing_class) if given is None else given

    async def _scores(self, asked: Round, step: int | None) -> list[VersionedScore] | None:
        try:
            pinned = self._pinned_weights(step)
            async with self._connect(self._url) as client:
                return await score_round(client, asked, {**self._options, **pinned})
        except VigorError as error:
            if self._on_failure == "raise":
                raise
            logger.warning("no rewards for %s: %s: %s", asked.name, type(error).__name__, error)
            return None

    def _pinned_weights(self, step: int | None) -> dict[str, object]:
        if self._weights is None or step is None:
            return {}
        publication = self._weights.at(step)
        return {"weight_version": publication.weight_version, "weight_digest": publication.weight_digest}


class VigorReward(_Reward):
    """A reward function of TRL: ``GRPOTrainer(reward_funcs=VigorReward(url, tokenizer, num_generations), …)``.

    Equals the ranks of exact gradient norms within whole groups, mapped to [-1, 1], however the groups lie over the
    processes of the run.

    Args:
        url: where the service listens.
        processing_class: the trainer's tokenizer.
        num_generations: completions per prompt, as in the trainer's configuration.
        num_generations_eval: completions per prompt in evaluation. If it differs, ``weights`` is needed, because TRL
            does not tell a reward function whether it evaluates.
        weights: a ``WeightPublisher``: scores must come from the weights that it published for this step. Without
            it, the service scores with whichever weights it has.
        eos_token_ids: token ids that end a completion; by default those that TRL counts as its end: the
            end-of-sequence tokens of the trainer (where TRL does not expose them, of the tokenizer) and padding.
        chat_template_kwargs: as in the trainer's configuration.
        reward, ties, truncated: as in ``VigorClient.score``.
        on_failure: what happens if a call is not scored after the client's retries: ``none`` returns None for each of
            its completions, which TRL leaves out of the step; ``raise`` raises the error.
        connect: makes the client: ``partial(AsyncVigorClient, timeout_seconds=900)``.
        processes: tells which process this is, for tests.

    Raises:
        ValueError: at the start, an argument out of range, or ``num_generations_eval`` without ``weights``; in a call,
            completions that cannot be scored (images, tools, environments), or prompts that the trainer renders with
            other settings.
        InvalidGroupError: in a call, completions that are not whole groups of one prompt each.
        UnsupportedTrlError: at the start, the installed TRL lacks what is read from it.
        VigorError: in a call, with ``on_failure="raise"``.
    """

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[list[int]],
        *,
        trainer_state: TrainerState | None = None,
        **columns: Any,  # noqa: ANN401 - of the dataset, and TRL's own
    ) -> Rewards:
        step = _step(trainer_state)
        asked = self._round(prompts, completions, completion_ids, step, columns)
        with ThreadPoolExecutor(max_workers=1) as thread:  # a notebook's thread already runs a loop
            scores = thread.submit(asyncio.run, self._scores(asked, step)).result()
        return _rewards(scores, completion_ids, columns)


class AsyncVigorReward(_Reward):
    """``VigorReward`` as a coroutine, which TRL awaits beside other async reward functions. Arguments are the same."""

    async def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[list[int]],
        *,
        trainer_state: TrainerState | None = None,
        **columns: Any,  # noqa: ANN401 - of the dataset, and TRL's own
    ) -> Rewards:
        step = _step(trainer_state)
        asked = self._round(prompts, completions, completion_ids, step, columns)
        return _rewards(await self._scores(asked, step), completion_ids, columns)


def _trainer_of(columns: Mapping[str, object]) -> object:
    """Return the calling trainer, found through a method of it that TRL passes on; None under ``AsyncGRPOTrainer``."""
    return getattr(columns.get("log_metric"), "__self__", None)


def _step(trainer_state: TrainerState | None) -> int | None:
    return None if trainer_state is None else trainer_state.global_step  # AsyncGRPOTrainer passes none


def _refuse_unscorable(completions: Sequence[Text], columns: Mapping[str, object]) -> None:
    if given := [name for name in UNSCORABLE_COLUMNS if name in columns]:
        raise ValueError(f"the service scores only text, but TRL passes {', '.join(given)}")
    if any(not isinstance(turns, str) and (len(turns) > 1 or turns[0].get("tool_calls")) for turns in completions):
        raise ValueError(
            "TRL does not tell a reward function which tokens a tool wrote; use vigor-trainer to train with tools"
        )


def _rewards(
    scores: Sequence[VersionedScore] | None, completion_ids: Sequence[list[int]], columns: Mapping[str, object]
) -> Rewards:
    if scores is None:
        return [None] * len(completion_ids)
    _log(scores, completion_ids, columns)
    return [scored.score.reward for scored in scores]


def _log(
    versioned: Sequence[VersionedScore], completion_ids: Sequence[list[int]], columns: Mapping[str, object]
) -> None:
    scores = [each.score for each in versioned]
    if callable(log_extra := columns.get("log_extra")):
        log_extra(NORM_COLUMN, [score.scaled_grad_norm for score in scores])
        log_extra(RANK_COLUMN, [score.rank for score in scores])
    if callable(log_metric := columns.get("log_metric")):
        log_metrics(score_metrics(scores, completion_ids, weight_version=versioned[0].weight_version), log_metric)
