"""The numbers behind the plots: over windows of steps, by rank, against length; with intervals over groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, TypedDict, TypeVar

import numpy as np

from vigor_trainer.monitoring import intervals
from vigor_trainer.monitoring.evaluations import EvaluationRecord
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.monitoring.statistics import ordered_pairs
from vigor_trainer.reports.runs import Run, Sample, SampleGroup

MAX_WINDOWS = 24
"""Maximum number of windows of a curve with intervals: fewer groups per window give wider intervals."""
MAX_POINTS = 200
NUM_BINS = 8
MAX_SCATTERED = 1500
_MAX_BLOCKS = 1000  # blocks of consecutive groups, which are summed up to bound the cost of resampling
_LABEL = "verifier"  # excluded from the AUC, as its order is correctness itself

Item = TypeVar("Item")
Share = tuple[float, float]
"""The amounts that a group adds to the numerator and to the denominator of a ratio."""


class Curve(TypedDict):
    """Points with their intervals: ``x`` is a step or a bin, ``span`` the first and the last step of the point."""

    x: list[float]
    span: list[tuple[int, int]]
    value: list[float]
    low: list[float]
    high: list[float]


class Line(TypedDict):
    """Points without intervals."""

    x: list[float]
    y: list[float]


class Norms(TypedDict):
    """Completions with a norm, evenly chosen; the slopes are those of log norm over log length of all of them."""

    tokens: list[int]
    norm: list[float]
    scaled: list[float]
    slopes: list[float | None]


def accuracy_share(group: SampleGroup) -> Share:
    """Return the numbers of correct and of judged completions."""
    judged = [sample.is_correct for sample in group.samples if sample.is_correct is not None]
    return float(sum(judged)), float(len(judged))


def repetition_share(group: SampleGroup) -> Share:
    """Return the sum of the completions' repetition, and their number."""
    return math.fsum(sample.repetition for sample in group.samples), float(len(group.samples))


def truncated_share(group: SampleGroup) -> Share:
    """Return the numbers of truncated and of all completions."""
    return float(sum(sample.is_truncated for sample in group.samples)), float(len(group.samples))


def over_steps(groups: Sequence[SampleGroup], share: Callable[[SampleGroup], Share]) -> Curve:
    """Return a ratio over windows of steps, with intervals over groups; omits windows with a denominator of 0."""
    curve = _empty()
    for window in windows(groups):
        steps = window[0].step, window[-1].step
        _add(curve, sum(steps) / 2, steps, _ratio(list(map(share, window))))
    return curve


def auc_over_steps(run: Run) -> dict[str, Curve]:
    """Return the within-group AUC of each reward against correctness, by the reward's name; without empty curves."""
    names = dict.fromkeys([*run.rewards, *(name for group in run.groups[:1] for name in group.samples[0].values)])
    curves = {name: over_steps(run.groups, lambda group, name=name: _pairs(group, name)) for name in names}
    return {name: curve for name, curve in curves.items() if curve["x"] and name != _LABEL}


def held_out_accuracy(evaluations: Sequence[EvaluationRecord]) -> dict[str, Curve]:
    """Return held-out accuracy over steps, by decoding, with intervals over questions; without empty curves."""
    curves: dict[str, Curve] = {"greedy": _empty(), "sampled": _empty()}
    for evaluation in evaluations:
        for decoding, curve in curves.items():
            metrics: Mapping[str, Any] = evaluation.metrics[decoding] or {}
            if accuracy := metrics.get("accuracy"):
                _add(curve, evaluation.step, (evaluation.step, evaluation.step), intervals.Estimate(**accuracy))
    return {decoding: curve for decoding, curve in curves.items() if curve["x"]}


def by_rank(groups: Sequence[SampleGroup]) -> dict[str, Curve]:
    """Return length, repetition and accuracy by the rank in the group, in eight bins: 1 holds the best ranks.

    In groups of eight a bin is a rank; otherwise it is an eighth of the group, and smaller groups fill fewer bins.
    """
    measures: Mapping[str, Callable[[Sample], float | None]] = {
        "length": lambda sample: float(sample.num_tokens),
        "repetition": lambda sample: sample.repetition,
        "accuracy": lambda sample: None if sample.is_correct is None else float(sample.is_correct),
    }
    return {name: _binned(groups, measure) for name, measure in measures.items()}


def norms_against_length(groups: Sequence[SampleGroup]) -> Norms:
    """Return norm and length of completions, without and with the factor √T."""
    samples = [
        (sample.num_tokens, sample.grad_norm, sample.scaled_grad_norm)
        for group in groups
        for sample in group.samples
        if sample.grad_norm and sample.scaled_grad_norm
    ]
    shown = evenly(samples, MAX_SCATTERED)
    return {
        "tokens": [tokens for tokens, _, _ in shown],
        "norm": [norm for _, norm, _ in shown],
        "scaled": [scaled for _, _, scaled in shown],
        "slopes": [
            _log_slope([(tokens, norm) for tokens, norm, _ in samples]),
            _log_slope([(tokens, scaled) for tokens, _, scaled in samples]),
        ],
    }


def metric_line(rounds: Sequence[RoundRecord], measure: Callable[[RoundRecord], float | None]) -> Line:
    """Return a metric of the rounds over steps; with many rounds, means over windows."""
    return _line([(record.step, value) for record in rounds if (value := measure(record)) is not None])


def logged_line(log: Sequence[Mapping[str, float]], name: str) -> Line:
    """Return the values that the trainer has logged under a name, over steps."""
    return _line([(entry["step"], entry[name]) for entry in log if name in entry and "step" in entry])


def windows(groups: Sequence[SampleGroup]) -> list[list[SampleGroup]]:
    """Return the groups in at most ``MAX_WINDOWS`` windows of equally many steps."""
    by_step = [list(found) for _, found in groupby(groups, key=lambda group: group.step)]
    width = math.ceil(len(by_step) / MAX_WINDOWS) or 1
    return [list(chain.from_iterable(by_step[start : start + width])) for start in range(0, len(by_step), width)]


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most ``limit`` of the items, evenly spaced."""
    stride = math.ceil(len(items) / limit) or 1
    return list(items[::stride])


def _pairs(group: SampleGroup, name: str) -> Share:
    judged = [
        (-math.inf if (value := sample.values.get(name)) is None else value, sample.is_correct)
        for sample in group.samples
        if sample.is_correct is not None
    ]
    if all(value == -math.inf for value, _ in judged):  # the reward has no value in this group
        return 0.0, 0.0
    won, pairs = ordered_pairs([value for value, _ in judged], [right for _, right in judged])
    return won, float(pairs)


def _binned(groups: Sequence[SampleGroup], measure: Callable[[Sample], float | None]) -> Curve:
    curve = _empty()
    for number in range(NUM_BINS):
        shares: list[Share] = []
        for group in groups:
            found = [measure(sample) for sample in group.samples if _bin(sample.rank, len(group.samples)) == number]
            present = [value for value in found if value is not None]
            shares.append((math.fsum(present), float(len(present))))
        if groups:
            _add(curve, number + 1, (groups[0].step, groups[-1].step), _ratio(shares))
    return curve


def _bin(rank: float, size: int) -> int:
    return int(NUM_BINS * (rank - 0.5) / size)


def _ratio(shares: Sequence[Share]) -> intervals.Estimate | None:
    width = math.ceil(len(shares) / _MAX_BLOCKS) or 1
    blocks = [shares[start : start + width] for start in range(0, len(shares), width)]
    tops = [math.fsum(top for top, _ in block) for block in blocks]
    return intervals.ratio(tops, [math.fsum(bottom for _, bottom in block) for block in blocks])


def _add(curve: Curve, x: float, span: tuple[int, int], estimate: intervals.Estimate | None) -> None:
    if estimate is not None:
        curve["x"].append(x)
        curve["span"].append(span)
        curve["value"].append(estimate.value)
        curve["low"].append(estimate.low)
        curve["high"].append(estimate.high)


def _empty() -> Curve:
    return {"x": [], "span": [], "value": [], "low": [], "high": []}


def _line(points: Sequence[tuple[float, float]]) -> Line:
    width = math.ceil(len(points) / MAX_POINTS) or 1
    means = [_mean(points[start : start + width]) for start in range(0, len(points), width)]
    return {"x": [x for x, _ in means], "y": [y for _, y in means]}


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(x for x, _ in points) / len(points), math.fsum(y for _, y in points) / len(points)


def _log_slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Return the least-squares slope of log y over log x; None where x does not vary."""
    logs = np.log(np.asarray(list(points), np.float64).reshape(-1, 2))
    if len(logs) == 0 or np.ptp(logs[:, 0]) == 0:
        return None
    x, y = (logs - logs.mean(axis=0)).T
    return float((x @ y) / (x @ x))
