"""The metrics of an evaluation, each with its bootstrap interval over questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vigor_trainer.monitoring.evaluations import Decoding, EvaluatedCompletion
from vigor_trainer.monitoring.intervals import Estimate, mean, ratio
from vigor_trainer.monitoring.statistics import pass_at_k, repetition

Group = Sequence[EvaluatedCompletion]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingMetrics:
    """Means over the completions of one decoding. None means that there was nothing to measure.

    ``accuracy`` of sampled completions is avg@k.
    """

    accuracy: Estimate | None  # of the questions with an answer
    format_rate: Estimate | None  # share of completions with a closed \boxed{}
    mean_length: Estimate | None  # tokens
    mean_terminated_length: Estimate | None  # tokens, of the completions that were not cut off
    clipped_share: Estimate | None  # share of completions cut off at the maximum length
    repetition: Estimate | None  # share of 3-grams that occurred earlier in the completion
    mean_entropy: Estimate | None  # nats per token, at temperature 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationMetrics:
    """All metrics of an evaluation."""

    num_questions: int
    num_labelled: int  # questions with an answer
    greedy: DecodingMetrics
    sampled: DecodingMetrics | None
    pass_at_k: Mapping[str, Estimate]  # k -> probability that at least one of k samples is correct


def evaluation_metrics(completions: Iterable[EvaluatedCompletion]) -> EvaluationMetrics:
    """Return the metrics of an evaluation."""
    groups: dict[Decoding, dict[int, list[EvaluatedCompletion]]] = {"greedy": {}, "sampled": {}}
    for completion in completions:
        groups[completion.decoding].setdefault(completion.question, []).append(completion)
    greedy, sampled = (list(groups[decoding].values()) for decoding in ("greedy", "sampled"))
    return EvaluationMetrics(
        num_questions=len(greedy),
        num_labelled=len(labelled(greedy)),
        greedy=_of_decoding(greedy),
        sampled=_of_decoding(sampled) if sampled else None,
        pass_at_k=_pass_at_k(labelled(sampled)),
    )


def logged_metrics(metrics: EvaluationMetrics) -> dict[str, float]:
    """Return the metrics without intervals, by the names under which a run logs them: `eval_greedy_accuracy`, …"""
    found: dict[str, float] = {f"eval_pass_at_{k}": estimate.value for k, estimate in metrics.pass_at_k.items()}
    for decoding, numbers in (("greedy", metrics.greedy), ("sampled", metrics.sampled)):
        fields: dict[str, Any] = asdict(numbers) if numbers else {}
        found |= {f"eval_{decoding}_{name}": estimate["value"] for name, estimate in fields.items() if estimate}
    return found


def labelled(groups: Iterable[Group]) -> list[Group]:
    """Return the questions that have an answer."""
    return [group for group in groups if group[0].is_correct is not None]


def num_correct(group: Group) -> int:
    """Return how many completions of a question give its answer."""
    return sum(completion.is_correct or False for completion in group)


def mean_of_completions(
    groups: Sequence[Group],
    number: Callable[[EvaluatedCompletion], float],
    weight: Callable[[EvaluatedCompletion], float] = lambda _: 1,
) -> Estimate | None:
    """Return the sum of ``number`` over completions whose weight is not 0, divided by the sum of the weights."""
    numerators = [sum(number(each) for each in group if weight(each)) for group in groups]
    return ratio(numerators, [sum(map(weight, group)) for group in groups])


def _of_decoding(groups: Sequence[Group]) -> DecodingMetrics:
    with_answer = labelled(groups)
    return DecodingMetrics(
        accuracy=ratio(list(map(num_correct, with_answer)), list(map(len, with_answer))),
        format_rate=mean_of_completions(groups, lambda each: each.is_boxed),
        mean_length=mean_of_completions(groups, lambda each: each.num_tokens),
        mean_terminated_length=mean_of_completions(
            groups, lambda each: each.num_tokens, lambda each: each.finish_reason == "stop"
        ),
        clipped_share=mean_of_completions(groups, lambda each: each.finish_reason == "length"),
        repetition=mean_of_completions(groups, lambda each: repetition(each.completion_ids or [])),
        mean_entropy=mean_of_completions(
            groups,
            lambda each: (each.mean_entropy or 0.0) * each.num_tokens,
            lambda each: each.num_tokens if each.mean_entropy is not None else 0,
        ),
    )


def _pass_at_k(groups: Sequence[Group]) -> dict[str, Estimate]:
    num_samples = min(map(len, groups), default=0)
    estimates = {
        str(k): mean([pass_at_k(len(group), num_correct(group), k) for group in groups])
        for k in range(1, num_samples + 1)
    }
    return {k: estimate for k, estimate in estimates.items() if estimate is not None}
