"""All numbers of `eval.json` and `audit.json` once more, from nothing but the lines of their `completions.jsonl`.

Plain loops that share no code with the trainer but the comparison of answers, which is math-verify's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from math_verify import parse, verify  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has none

Row = dict[str, Any]


def estimate(tops: list[float], bottoms: list[float]) -> dict[str, float] | None:
    """Sum over sum, with the 95 % bootstrap interval over questions, one resample after the other."""
    if not any(bottoms):
        return None
    generator, found = np.random.default_rng(0), []
    for drawn in generator.integers(len(tops), size=(2000, len(tops))):
        below = sum(bottoms[at] for at in drawn)
        if below:
            found.append(sum(tops[at] for at in drawn) / below)
    found.sort()
    return {"value": sum(tops) / sum(bottoms), "low": _quantile(found, 0.025), "high": _quantile(found, 0.975)}


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def mean(values: list[float]) -> dict[str, float] | None:
    return estimate(values, [1.0] * len(values))


def grouped(rows: list[Row], decoding: str) -> list[list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row["decoding"] == decoding:
            groups.setdefault(row["question"], []).append(row)
    return list(groups.values())


def over_completions(groups: list[list[Row]], number: Callable[[Row], float]) -> dict[str, float] | None:
    return estimate([float(sum(map(number, group))) for group in groups], [float(len(group)) for group in groups])


def evaluation(rows: list[Row]) -> Row:
    """What `eval.json` says beside settings and seconds."""
    greedy, sampled = grouped(rows, "greedy"), grouped(rows, "sampled")
    answered = [group for group in sampled if group[0]["answer"] is not None]
    num_samples = len(sampled[0]) if sampled else 0
    return {
        "num_questions": len(greedy),
        "num_labelled": sum(group[0]["answer"] is not None for group in greedy),
        "greedy": of_decoding(greedy),
        "sampled": of_decoding(sampled) if sampled else None,
        "pass_at_k": {
            str(k): mean([share_with_a_correct_one(group, k) for group in answered]) for k in range(1, num_samples + 1)
        },
    }


def of_decoding(groups: list[list[Row]]) -> Row:
    answered = [group for group in groups if group[0]["answer"] is not None]
    ended = [[row for row in group if row["finish_reason"] == "stop"] for group in groups]
    return {
        "accuracy": over_completions(answered, lambda row: row["is_correct"]),
        "format_rate": over_completions(groups, lambda row: row["is_boxed"]),
        "mean_length": over_completions(groups, lambda row: len(row["completion_ids"])),
        "mean_terminated_length": over_completions(ended, lambda row: len(row["completion_ids"])),
        "clipped_share": over_completions(groups, lambda row: row["finish_reason"] == "length"),
        "repetition": over_completions(groups, lambda row: repeated_share(row["completion_ids"])),
        "mean_entropy": estimate(
            [sum(row["mean_entropy"] * row["num_tokens"] for row in group) for group in groups],
            [float(sum(row["num_tokens"] for row in group)) for group in groups],
        ),
    }


def share_with_a_correct_one(group: list[Row], k: int) -> float:
    subsets = list(combinations(group, k))
    return sum(any(row["is_correct"] for row in subset) for subset in subsets) / len(subsets)


def repeated_share(ids: list[int]) -> float:
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    for start in range(len(ids) - 2):
        gram = tuple(ids[start : start + 3])
        repeated += gram in seen
        seen.add(gram)
    return repeated / (len(ids) - 2) if len(ids) > 2 else 0.0


def rank_rewards(values: list[float | None]) -> list[float]:
    """The smallest is best (1), the largest worst (−1); equal ones share; None is behind all."""
    keys = [math.inf if value is None else value for value in values]
    ranks = [1 + sum(b < a for b in keys) + (sum(b == a for b in keys) - 1) / 2 for a in keys]
    return [1 - 2 * (rank - 1) / (len(keys) - 1) for rank in ranks]


def rewards(group: list[Row]) -> dict[str, list[float]]:
    """Every reward but `random`, which is drawn."""

    def ranked(field: str, sign: int) -> list[float]:
        return rank_rewards([None if row[field] is None else sign * row[field] for row in group])

    return {
        "vigor": ranked("scaled_grad_norm", 1),
        "vigor_without_sqrt_length": ranked("grad_norm", 1),
        "self_certainty": ranked("self_certainty", -1),
        "entropy": ranked("mean_entropy", 1),
        "logprob": ranked("mean_logprob", -1),
        "p_norm": ranked("p_norm", -1),
        "trajectory_logprob": ranked("sum_logprob", -1),
        "verifier": [float(row["is_correct"]) for row in group],
        "majority": agreements([row["final_answer"] for row in group]),
        "format": [float(row["is_boxed"]) for row in group],
    }


def agreements(answers: list[str | None]) -> list[float]:
    votes = [sum(same(answer, other) for other in answers) for answer in answers]
    voted = answers[votes.index(max(votes))]
    return [float(same(voted, answer)) for answer in answers]


def same(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and (one == other or verify(parse(one), parse(other)))


def audit(rows: list[Row]) -> Row:
    """What `audit.json` says beside its verdict and what it is about."""
    groups = grouped(rows, "sampled")
    greedy = {row["question"]: float(row["is_correct"]) for row in rows if row["decoding"] == "greedy"}
    any_correct = [float(any(row["is_correct"] for row in group)) for group in groups]
    return {
        "num_questions": len(groups),
        "num_completions": sum(map(len, groups)),
        "num_mixed": sum(len({row["is_correct"] for row in group}) == 2 for group in groups),
        "num_pairs": sum(len(pairs(group)) for group in groups),
        "random_auc": random_auc(groups),
        "greedy_accuracy": mean([greedy[group[0]["question"]] for group in groups]) if greedy else None,
        "mean_accuracy": over_completions(groups, lambda row: row["is_correct"]),
        "majority_accuracy": mean([best_of(group, "majority") for group in groups]),
        "best_possible_accuracy": mean(any_correct),
        "clipped_share": over_completions(groups, lambda row: row["finish_reason"] == "length"),
        "mean_length": over_completions(groups, lambda row: row["num_tokens"]),
        "rewards": {name: of_reward(groups, greedy, name) for name in groups[0][0]["rewards"]},
        "norms": of_norms(groups),
    }


def of_reward(groups: list[list[Row]], greedy: dict[int, float], name: str) -> Row:
    won = [wins(group, name) for group in groups]
    by_chance = [wins(group, "random") for group in groups]
    num_pairs = [float(len(pairs(group))) for group in groups]
    best = [best_of(group, name) for group in groups]
    means = [sum(row["is_correct"] for row in group) / len(group) for group in groups]
    of_greedy = [greedy[group[0]["question"]] for group in groups] if greedy else None
    return {
        "auc": estimate(won, num_pairs),
        "auc_minus_random": estimate([a - b for a, b in zip(won, by_chance, strict=True)], num_pairs),
        "best_of_accuracy": mean(best),
        "best_of_minus_greedy": mean([a - b for a, b in zip(best, of_greedy, strict=True)]) if of_greedy else None,
        "best_of_minus_mean": mean([a - b for a, b in zip(best, means, strict=True)]),
    }


def random_auc(groups: list[list[Row]]) -> dict[str, float] | None:
    """The share of pairs that 2000 random orders put right, pair by pair."""
    generator, shares = np.random.default_rng(0), [0.0] * 2000
    num_pairs = sum(len(pairs(group)) for group in groups)
    for group in groups:
        orders = generator.permuted(np.tile(np.arange(len(group)), (2000, 1)), axis=1)
        right = [at for at, row in enumerate(group) if row["is_correct"]]
        wrong = [at for at, row in enumerate(group) if not row["is_correct"]]
        for draw, order in enumerate(orders):
            shares[draw] += sum(float(order[a] > order[b]) for a in right for b in wrong) / max(num_pairs, 1)
    if not num_pairs:
        return None
    ordered = sorted(shares)
    return {"value": sum(shares) / 2000, "low": _quantile(ordered, 0.025), "high": _quantile(ordered, 0.975)}


def pairs(group: list[Row]) -> list[tuple[Row, Row]]:
    """(correct, wrong)"""
    return [(a, b) for a in group for b in group if a["is_correct"] and not b["is_correct"]]


def wins(group: list[Row], name: str) -> float:
    differences = [right["rewards"][name] - wrong["rewards"][name] for right, wrong in pairs(group)]
    return float(sum(difference > 0 for difference in differences)) + sum(each == 0 for each in differences) / 2


def best_of(group: list[Row], name: str) -> float:
    best = max(row["rewards"][name] for row in group)
    chosen = [row["is_correct"] for row in group if row["rewards"][name] == best]
    return sum(chosen) / len(chosen)


def of_norms(groups: list[list[Row]]) -> Row:
    norms = [[row["scaled_grad_norm"] for row in group if row["scaled_grad_norm"] is not None] for group in groups]
    two = [list(combinations(of_group, 2)) for of_group in norms]
    repeats = [
        float(sum(row["completion"] in [other["completion"] for other in group[:at]] for at, row in enumerate(group)))
        for group in groups
    ]
    return {
        "log_slope": slope(groups, "grad_norm"),
        "scaled_log_slope": slope(groups, "scaled_grad_norm"),
        "tied_share": estimate([float(sum(a == b for a, b in of)) for of in two], [float(len(of)) for of in two]),
        "duplicate_share": estimate(repeats, [float(len(group)) for group in groups]),
        "spread": mean([(max(of) - min(of)) / (sum(of) / len(of)) for of in norms if of]),
    }


def slope(groups: list[list[Row]], field: str) -> dict[str, float] | None:
    tops: list[float] = []
    bottoms: list[float] = []
    for group in groups:
        points = [(math.log(row["num_tokens"]), math.log(row[field])) for row in group if row[field]]
        middle = [sum(values) / len(points) for values in zip(*points, strict=True)]
        tops.append(sum((x - middle[0]) * (y - middle[1]) for x, y in points))
        bottoms.append(sum((x - middle[0]) ** 2 for x, _ in points))
    return estimate(tops, bottoms)


def differences(found: object, expected: object, place: str = "") -> list[str]:
    """The places at which two JSON values differ by more than rounding."""
    if isinstance(found, dict) and isinstance(expected, dict):
        missing = [f"{place}.{key} is in one of the two" for key in found.keys() ^ expected.keys()]
        shared = [key for key in found if key in expected]
        return missing + [line for key in shared for line in differences(found[key], expected[key], f"{place}.{key}")]
    if isinstance(found, float | int) and isinstance(expected, float | int):
        close = math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
        return [] if close else [f"{place}: {found} is not {expected}"]
    return [] if found == expected else [f"{place}: {found} is not {expected}"]
