"""The metrics that TRL logs for a scored round: one table of names, for TRL's own trainers and for `vigor-trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from vigor_client.schemas.scoring import CompletionScore

PREFIX = "vigor/"
SCORE_METRICS = {
    "weight_version": "version of the weights that the scores come from",
    "mean_scaled_grad_norm": "mean of √T · ‖∇NLL‖ over the completions that have a norm",
    "num_unscored": "number of completions without a norm: empty, truncated, not finite",
    "mean_length": "mean number of sampled tokens",
    "mean_logprob": "mean log-probability of a sampled token, in nats",
    "mean_entropy": "mean entropy of the next token, in nats",
    "self_certainty": "mean self-certainty, in nats",
}
"""Name -> meaning of the metrics that are computed from the scores of a round."""

RUN_METRICS = {
    "reward_length_correlation": "correlation of reward and length within groups, in [-1, 1]",
    "accuracy": "share of the completions that give the answer, of those whose prompt has one",
    "top_quarter_accuracy": "the same share of each group's best quarter by reward",
    "duplicate_share": "share of the completions with the same tokens as another of their group",
    "tie_share": "share of the completions with the same reward as a different one of their group",
    "repetition": "mean share of 3-grams that occurred earlier in the same completion",
    "looping_share": "share of the completions whose repetition is at least one half",
    "norm_spread": "range of a group's scaled norms divided by their mean, averaged over groups",
    "sent_bytes": "bytes of weights sent; 0 if the service already had them",
    "generate_seconds": "seconds of generation",
    "publish_seconds": "seconds of publishing, in parallel with generation",
    "wait_seconds": "seconds of waiting for the publication after generation had ended",
    "score_seconds": "seconds of scoring",
}
"""Name -> meaning of the metrics that only `vigor-trainer` has: it sees all processes, answers and its publication."""

METRICS = {**SCORE_METRICS, **RUN_METRICS}
NORM_COLUMN, RANK_COLUMN = "scaled_grad_norm", "rank"
"""Names of the columns that are added to TRL's table of completions."""


def score_metrics(
    scores: Sequence[CompletionScore], completion_ids: Sequence[Sequence[int]], *, weight_version: int
) -> dict[str, float | None]:
    """Return the values of ``SCORE_METRICS``; None for a metric that no completion has."""
    return {
        "weight_version": weight_version,
        "mean_scaled_grad_norm": mean(score.scaled_grad_norm for score in scores),
        "num_unscored": sum(score.status != "ok" for score in scores),
        "mean_length": mean(map(len, completion_ids)),
        "mean_logprob": mean(score.mean_logprob for score in scores),
        "mean_entropy": mean(score.mean_entropy for score in scores),
        "self_certainty": mean(score.self_certainty for score in scores),
    }


def log_metrics(values: Mapping[str, float | None], log_metric: Callable[[str, float], object]) -> None:
    """Log the metrics that have a value, by TRL's ``log_metric``.

    Raises:
        KeyError: a name that is not in the table.
    """
    if unknown := values.keys() - METRICS.keys():
        raise KeyError(f"{sorted(unknown)} are not in the table of metrics")
    for name, value in values.items():
        if value is not None:
            log_metric(f"{PREFIX}{name}", float(value))


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are no such values."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
