"""Reward functions for TRL's own GRPOTrainer and AsyncGRPOTrainer.

TRL calls them in every process with the completions of that process alone, whose groups lie end to end over all
processes. Prompts are tokenized as TRL does it, completions go as the sampled ids. The functions can be pickled, since
AsyncGRPOTrainer hands them to another process: they hold a URL and connect for each call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from vigor_client.client import AsyncVigorClient
from vigor_client.errors import VigorError
from vigor_client.integrations.trl.distributed import Processes, torch_processes
from vigor_client.integrations.trl.group_slices import parts_of_slice
from vigor_client.integrations.trl.round import Round, VersionedScore, score_round
from vigor_client.publishing.publish import PublishResult
from vigor_client.ranking import TieRule
from vigor_client.schemas.scoring import Completion, RewardName, TruncatedRule

UNSCORABLE_COLUMNS = ("image", "images", "environments")

Text = str | list[dict[str, Any]]
Rewards = list[float | None]

logger = logging.getLogger(__name__)


class ProcessingClass(Protocol):
    """What is asked of the trainer's ``processing_class``, a tokenizer of transformers, which types it so."""

    def __getattr__(self, key: str) -> Any: ...  # noqa: ANN401 - how it has `eos_token_id`

    def __call__(self, *, text: Any) -> Any: ...  # noqa: ANN401

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...  # noqa: ANN401


class CurrentWeights(Protocol):
    """What is asked of a ``WeightPublisher``."""

    @property
    def is_training(self) -> bool: ...

    def at(self, step: int) -> PublishResult: ...


class TrainerState(Protocol):
    """What is asked of TRL's ``trainer_state``."""

    @property
    def global_step(self) -> int: ...


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
        if num_generations < 1 or num_generations_eval == 0:
            raise ValueError(f"{num_generations} and {num_generations_eval} generations: a group has at least one")
        if on_failure not in ("none", "raise"):
            raise ValueError(f"on_failure is {on_failure!r}; give 'none' or 'raise'")
        if num_generations_eval not in (None, num_generations) and weights is None:
            raise ValueError("num_generations_eval differs from num_generations: give weights, which know when it is")
        self.__name__ = reward  # TRL logs rewards/<name>/mean
        self._url = url
        self._processing_class = processing_class
        self._num_generations = num_generations
        self._num_generations_eval = num_generations_eval or num_generations
        self._weights = weights
        self._eos_token_ids = eos_token_ids
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._options: dict[str, object] = {"reward": reward, "ties": ties, "truncated": truncated}
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
        """What this call asks. Every process comes here equally often, so the count names the same call in all."""
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
            prompt_ids=self._tokenized(prompts),
            completions=[Completion(ids=ids, finish_reason=_finish_reason(ids, ends)) for ids in completion_ids],
        )

    def _refuse_other_prompts(self, trainer: object) -> None:
        for name in ("tools", "rollout_func"):
            if getattr(trainer, name, None):
                raise ValueError(
                    f"the trainer has {name}, of which TRL does not tell a reward function enough: use vigor-trainer"
                )
        theirs = getattr(trainer, "chat_template_kwargs", self._chat_template_kwargs)
        if theirs != self._chat_template_kwargs:
            raise ValueError(f"the trainer renders prompts with chat_template_kwargs {theirs}: give the same here")

    def _group_size(self) -> int:
        is_evaluating = self._weights is not None and not self._weights.is_training
        return self._num_generations_eval if is_evaluating else self._num_generations

    def _tokenized(self, prompts: Sequence[Text]) -> list[list[int]]:
        """The ids that TRL generated from: the same calls as in `GRPOTrainer._tokenize_prompts`."""
        if isinstance(prompts[0], str):
            return self._processing_class(text=list(prompts))["input_ids"]
        return self._processing_class.apply_chat_template(
            conversation=list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self._chat_template_kwargs,
        )["input_ids"]

    def _ends(self, trainer: object) -> set[int]:
        """What ends a completion: as given, else as the trainer generates, else the tokenizer's own."""
        if self._eos_token_ids is not None:
            return set(self._eos_token_ids)
        return set(getattr(trainer, "eos_token_ids", [self._processing_class.eos_token_id]))

    async def _scores(self, asked: Round, step: int | None) -> list[VersionedScore] | None:
        try:
            insisted = self._insisted(step)
            async with self._connect(self._url) as client:
                return await score_round(client, asked, {**self._options, **insisted})
        except VigorError as error:
            if self._on_failure == "raise":
                raise
            logger.warning("no rewards for %s: %s: %s", asked.name, type(error).__name__, error)
            return None

    def _insisted(self, step: int | None) -> dict[str, object]:
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
        num_generations_eval: likewise; another number needs ``weights``, because TRL does not tell a reward function
            whether it evaluates.
        weights: a ``WeightPublisher``: scores must come from what it published for this step. Without it, whatever
            the service has scores.
        eos_token_ids: what ends a completion; by default what the trainer ends generation with, where TRL shows it,
            else the tokenizer's own.
        chat_template_kwargs: as in the trainer's configuration.
        reward, ties, truncated: as in ``VigorClient.score``.
        on_failure: what a call gets that is not scored after the client's retries: ``none``, which TRL leaves out of
            the step, for all its completions; or ``raise``.
        connect: makes the client: ``partial(AsyncVigorClient, timeout_seconds=900)``.
        processes: tells which process this is, for tests.

    Raises:
        ValueError: at the start, arguments that say nothing, or ``num_generations_eval`` without ``weights``; in a
            call, completions that cannot be scored (images, tools, environments), or that are no whole groups, or
            prompts that the trainer renders otherwise.
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
        with ThreadPoolExecutor(max_workers=1) as thread:  # a notebook's thread runs an event loop already
            scores = thread.submit(asyncio.run, self._scores(asked, step)).result()
        return _rewards(scores, len(completion_ids), columns)


class AsyncVigorReward(_Reward):
    """``VigorReward`` as TRL awaits it, beside other async reward functions: the same arguments, the same rewards."""

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
        return _rewards(await self._scores(asked, step), len(completion_ids), columns)


def _trainer_of(columns: Mapping[str, object]) -> object:
    """TRL hands on a method of its trainer, which shows how prompts are rendered and what ends a completion."""
    return getattr(columns.get("log_metric"), "__self__", None)


def _finish_reason(ids: Sequence[int], ends: set[int]) -> Literal["stop", "length"]:
    return "stop" if ids and ids[-1] in ends else "length"


def _step(trainer_state: TrainerState | None) -> int | None:
    return None if trainer_state is None else trainer_state.global_step  # AsyncGRPOTrainer passes none


def _refuse_unscorable(completions: Sequence[Text], columns: Mapping[str, object]) -> None:
    if given := [name for name in UNSCORABLE_COLUMNS if name in columns]:
        raise ValueError(f"the service scores text alone, and TRL passes {', '.join(given)}")
    if any(not isinstance(turns, str) and (len(turns) > 1 or turns[0].get("tool_calls")) for turns in completions):
        raise ValueError(
            "TRL does not tell a reward function which tokens a tool wrote: train with tools by vigor-trainer"
        )


def _rewards(scores: Sequence[VersionedScore] | None, num_completions: int, columns: Mapping[str, object]) -> Rewards:
    if scores is None:
        return [None] * num_completions
    _log(scores, columns)
    return [scored.score.reward for scored in scores]


def _log(scores: Sequence[VersionedScore], columns: Mapping[str, object]) -> None:
    norms = [scored.score.scaled_grad_norm for scored in scores]
    known = [norm for norm in norms if norm is not None]
    if callable(log_extra := columns.get("log_extra")):
        log_extra("scaled_grad_norm", norms)
    if not callable(log_metric := columns.get("log_metric")):
        return
    log_metric("vigor/weight_version", float(scores[0].weight_version))
    log_metric("vigor/num_unscored", float(sum(scored.score.status != "ok" for scored in scores)))
    if known:
        log_metric("vigor/mean_scaled_grad_norm", sum(known) / len(known))
