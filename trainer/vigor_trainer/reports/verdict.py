"""States the results of runs in words: the title of the page and the sentences below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vigor_trainer.monitoring.evaluations import Decoding
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.reports.held_out import lead
from vigor_trainer.reports.runs import Run

Direction = Literal["up", "down", "undecided"]

_BEYOND = "beyond the 95 % interval"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A one-line summary, and the sentences that support it."""

    title: str
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The sentence about two runs, and the direction in which the first differs; None if they cannot be compared."""

    text: str
    went: Direction | None


def verdict(runs: Sequence[Run]) -> Verdict:
    """Return the verdict of held-out accuracy on each run, and on the first run compared with each other run.

    The wording follows the intervals: a change whose interval contains 0 is called no change.
    """
    if not any(_accuracy(run, _decoding(run), 0) for run in runs):
        return Verdict(f"{_listed([run.name for run in runs])}: no held-out accuracy was measured", _reasons(runs))
    first, *others = runs
    comparisons = [_comparison(first, other) for other in others]
    measure = f"in the change of {_decoding(first)} held-out accuracy"
    sentences = [f"{each.text}{f' {measure}' if each.went else ''}." for each in comparisons]
    sentences += [f"{_own(run)}." for run in runs]
    return Verdict(_title(runs, comparisons), [*sentences, *_basis(runs)])


def direction(change: Estimate) -> Direction:
    """Return the direction of a change, as far as its interval decides it."""
    if change.low > 0:
        return "up"
    return "down" if change.high < 0 else "undecided"


def percent(estimate: Estimate, *, sign: str = "") -> str:
    """Return an estimate and its interval in percent."""
    value, low, high = (_number(each, sign) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"


def points(change: Estimate, *, sign: str = "+") -> str:
    """Return a difference of two percentages and its interval, in percentage points."""
    value, low, high = (_number(each, sign) for each in (change.value, change.low, change.high))
    return f"{value} points [{low}, {high}]"


def _title(runs: Sequence[Run], comparisons: Sequence[_Comparison]) -> str:
    first, *others = runs
    if len(others) != 1:
        return _own(first)
    decoding = _decoding(first)
    harm = ", but harmed the model" if _went(first, decoding) == "down" and comparisons[0].went == "up" else ""
    changes = " and ".join(f"{_verb(run, decoding)} with {run.name}" for run in runs)
    title = f"{comparisons[0].text}{harm}: {decoding} held-out accuracy {changes}"
    if decoding == "sampled" and _went(first, decoding) != "down" and _went(first, "greedy") == "down":
        return f"{title}; greedy accuracy {_verb(first, 'greedy')} with {first.name}"
    return title


def _comparison(first: Run, other: Run) -> _Comparison:
    names = f"{first.name} and {other.name}"
    if first.info and other.info and first.info.model != other.info.model:
        return _Comparison(f"{names} are not compared, since they trained different models", None)
    ahead = lead(first.held_out, other.held_out) if first.held_out and other.held_out else None
    if ahead is None:
        reason = "they were not evaluated before and after on the same questions"
        return _Comparison(f"{names} are not compared, since {reason}", None)
    went = direction(ahead)
    texts: dict[Direction, str] = {
        "up": f"{first.name} beats {other.name} by {points(ahead, sign='')}",
        "down": f"{first.name} loses to {other.name} by {points(_negative(ahead), sign='')}",
        "undecided": f"No difference between {names} {_BEYOND}: {points(ahead)}",
    }
    return _Comparison(texts[went], went)


def _own(run: Run) -> str:
    """Return a run's effect on the model, by sampled completions and by greedy ones."""
    decoding = _decoding(run)
    before = _accuracy(run, decoding, 0)
    if before is None:
        return f"{run.name}: no held-out accuracy was measured"
    if len(run.evaluations) == 1:
        at = f"at step {run.evaluations[0].step}, not measured since"
        return f"{run.name}: {decoding} held-out accuracy {percent(before)} {at}"
    told = f"{decoding} held-out accuracy {_measured(run, decoding)}"
    if _change(run, decoding) is None:
        return f"{run.name}: {told}; the interval of the change was not recorded"
    if decoding == "sampled" and _change(run, "greedy") is not None:
        told += f"; greedy accuracy {_measured(run, 'greedy')}"
    return f"{run.name} {_effect(run, decoding)}: {told}"


def _effect(run: Run, decoding: Decoding) -> str:
    verbs: dict[Direction, str] = {"up": "helped", "down": "harmed"}
    went, greedy = _went(run, decoding), _went(run, "greedy")
    if went == "undecided" and greedy == "undecided":
        return f"changed nothing {_BEYOND}"
    if greedy not in ("undecided", went):
        sampling = f"{verbs[went]} sampling and " if went in verbs else ""
        return f"{sampling}{verbs[greedy]} greedy decoding"
    return "improved the model" if went == "up" else "harmed the model"


def _measured(run: Run, decoding: Decoding) -> str:
    """Return the sentence on both accuracies with intervals, and the direction and size of the change."""
    before, after, change = _accuracy(run, decoding, 0), _accuracy(run, decoding, -1), _change(run, decoding)
    if before is None or after is None:
        return "was not measured"
    measured = f"{percent(before)} → {percent(after)}"
    if change is None:
        return measured
    verbs: dict[Direction, str] = {"up": "rose ", "down": "fell "}
    return f"{verbs.get(direction(change), '')}{measured}, {points(change)}"


def _verb(run: Run, decoding: Decoding) -> str:
    """Return the direction of the change in short, for a title."""
    before, after = _accuracy(run, decoding, 0), _accuracy(run, decoding, -1)
    if before is None or after is None:
        return "was not measured"
    values = f"{_number(before.value)} % to {_number(after.value)} %"
    verbs: dict[Direction, str] = {"up": f"rose from {values}", "down": f"fell from {values}"}
    return verbs.get(_went(run, decoding), f"did not change {_BEYOND} ({values})")


def _went(run: Run, decoding: Decoding) -> Direction:
    change = _change(run, decoding)
    return "undecided" if change is None else direction(change)


def _change(run: Run, decoding: Decoding) -> Estimate | None:
    held_out = run.held_out_by_decoding.get(decoding)
    return held_out.change() if held_out else None


def _decoding(run: Run) -> Decoding:
    return "greedy" if _accuracy(run, "sampled", 0) is None else "sampled"


def _accuracy(run: Run, decoding: Decoding, index: int) -> Estimate | None:
    """Return the accuracy of the first (0) or of the last (-1) evaluation."""
    numbers: Mapping[str, Any] = (run.evaluations[index].metrics.get(decoding) if run.evaluations else None) or {}
    accuracy = numbers.get("accuracy")
    return Estimate(**accuracy) if accuracy else None


def _basis(runs: Sequence[Run]) -> list[str]:
    """Return a sentence on what the intervals are over, from the first run with the data."""
    held_out = next((run.held_out for run in runs if run.held_out), None)
    if held_out is None:
        return []
    number, samples = len(held_out.prompts), held_out.num_samples
    completions = f"{samples} sampled completions" if held_out.decoding == "sampled" else "one greedy completion"
    return [
        f"Intervals hold 95 % of the values that other draws of the {number} held-out questions would give, with "
        f"{completions} of each. Every run has one seed; another seed can give another result."
    ]


def _reasons(runs: Sequence[Run]) -> list[str]:
    if any(run.evaluations for run in runs):
        return ["The held-out questions have no answers and no tests, so no completion of them is right or wrong."]
    return ["Accuracy before and after needs evaluations during training: --eval_dataset with --eval_every."]


def _negative(change: Estimate) -> Estimate:
    return Estimate(-change.value, -change.high, -change.low)


def _number(share: float, sign: str = "") -> str:
    return format(100 * share, f"{sign}z.0f").replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
