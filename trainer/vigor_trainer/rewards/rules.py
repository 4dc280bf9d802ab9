"""The built-in rewards, each computed from one whole group. Pure: no TRL, no processes, no client.

Within a group the intrinsic rewards are ranks, from 1 (best) to -1; rewards of answers are 1 or 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from vigor_client import CompletionScore, rank_rewards, ranks
from vigor_client.schemas.scoring import ComputeName, RewardName, TieRule, compute_for
from vigor_trainer.config.arguments import BUILTINS, BuiltinName
from vigor_trainer.data.answers import Judged, majority, same_answer
from vigor_trainer.monitoring.completions import SIGNALS

NEED_ANSWERS: tuple[BuiltinName, ...] = ("verifier",)


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Options for turning scores into rewards.

    ``sqrt_length``: use norms times √T, as published, instead of plain norms. ``rank``: use ranks instead of the
    negative norms themselves. ``min_spread``: a group whose norms differ by less than this share of their mean gets 0.
    """

    ties: TieRule = "average"
    sqrt_length: bool = True
    rank: bool = True
    min_spread: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The completions of one prompt: their scores and their answers. ``seed`` is specific to the group."""

    scores: Sequence[CompletionScore]
    judged: Sequence[Judged]
    seed: str


def rewards_of(name: BuiltinName, group: ScoredGroup, options: RuleOptions) -> list[float]:
    """Return one reward per completion."""
    if name in SIGNALS:
        field, sign = SIGNALS[name]
        return _ranked([_scaled(getattr(score, field), -sign) for score in group.scores], options.ties)
    match name:
        case "vigor":
            return _of_norms([_norm(score, options) for score in group.scores], options)
        case "verifier":
            return [float(judged.is_correct or False) for judged in group.judged]
        case "majority":
            return _of_majority([judged.final for judged in group.judged])
        case "format":
            return [float(judged.is_boxed) for judged in group.judged]
        case _:
            return _shuffled_ranks(len(group.scores), group.seed)


def asked_reward(names: Sequence[str]) -> RewardName:
    """Return the reward that the service is asked to rank by, whose parts it must compute."""
    return "vigor" if "vigor" in names else "logprob"


def needed_parts(names: Sequence[str]) -> tuple[ComputeName, ...]:
    """Return the parts that the service must compute for these rewards; without `vigor`, no gradient."""
    return compute_for(asked_reward(names))


RANKED: tuple[BuiltinName, ...] = ("vigor", "random", *(name for name in BUILTINS if name in SIGNALS))
"""Rewards that order the completions of a group; the others only say whether an answer is right."""


def _scaled(value: float | None, factor: int) -> float | None:
    return None if value is None else factor * value


def _norm(score: CompletionScore, options: RuleOptions) -> float | None:
    return score.scaled_grad_norm if options.sqrt_length else score.grad_norm


def _of_norms(norms: Sequence[float | None], options: RuleOptions) -> list[float]:
    present = [norm for norm in norms if norm is not None]
    if not present or max(present) - min(present) < options.min_spread * fmean(present):
        return [0.0] * len(norms)
    if options.rank:
        return _ranked(norms, options.ties)
    return [-(max(present) if norm is None else norm) for norm in norms]  # without a norm: as bad as the worst


def _ranked(values: Sequence[float | None], ties: TieRule) -> list[float]:
    return rank_rewards(ranks(values, ties=ties))


def _of_majority(finals: Sequence[str | None]) -> list[float]:
    voted = majority(finals)
    return [float(final is not None and voted is not None and same_answer(voted, final)) for final in finals]


def _shuffled_ranks(num_completions: int, seed: str) -> list[float]:
    """Return the rank rewards of a random order: the baseline for all other rewards, with the same variance."""
    order = [float(rank) for rank in range(1, num_completions + 1)]
    Random(seed).shuffle(order)  # noqa: S311 - not used for security
    return rank_rewards(order)
