"""A contest: all contestants score the same group in turn; gives times, peaks and norms, or why a contestant failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.child import in_child
from benchmarks.contestants import IDEAL, Contestant
from benchmarks.turn import Conditions, Turn, Work, products_per_second, take_turn, work_of
from benchmarks.workloads import Workload


@dataclass
class Outcome:
    """One contestant's turns, one in each round, or why it has no turns."""

    turns: list[Turn] = field(default_factory=list)
    refusal: str | None = None

    @property
    def seconds(self) -> list[float]:
        """The time of each turn."""
        return [turn.seconds for turn in self.turns]

    @property
    def peak_mib(self) -> float | None:
        """The highest peak of all turns; None if there are no turns."""
        return max((turn.peak_bytes / 2**20 for turn in self.turns), default=None)

    @property
    def stolen_part(self) -> float:
        """The largest share of steal time in a turn; 0 if none was seen."""
        return max((turn.stolen_part for turn in self.turns), default=0.0)

    @property
    def card_bytes(self) -> int | None:
        """Maximum GPU memory in use at the end of a turn; None without a GPU."""
        return max((turn.card_bytes for turn in self.turns if turn.card_bytes is not None), default=None)


@dataclass
class Contest:
    """The outcomes of one workload, and the values they are compared with."""

    work: Work
    flops_per_second: list[float] = field(default_factory=list)  # of large matrix products, in each round
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def seconds(self, name: str) -> float | None:
        """Return a contestant's median time over the rounds."""
        seconds = self.outcomes[name].seconds
        return median(seconds) if seconds else None

    def ratio(self, name: str, other: str) -> float | None:
        """Return the median over the rounds of one contestant's time divided by another's in the same round."""
        return median_of_ratios(self._outcome(name).seconds, self._outcome(other).seconds)

    def peak_ratio(self, name: str, other: str) -> float | None:
        """Return one contestant's peak divided by another's, if both ran."""
        peak, of = self._outcome(name).peak_mib, self._outcome(other).peak_mib
        return peak / of if peak is not None and of else None

    def fraction(self, name: str, flops: int) -> float | None:
        """Return the median over rounds of the time for ``flops`` at the rate of products, by the contestant's time."""
        return median_of_ratios([flops / rate for rate in self.flops_per_second], self.outcomes[name].seconds)

    def difference(self, name: str) -> float | None:
        """Return the largest relative difference of a norm from the ideal loop's."""
        turns, wanted = self._outcome(name).turns, self._outcome(IDEAL).turns
        if not turns or not wanted:
            return None
        return max(abs(norm / right - 1) for norm, right in zip(turns[-1].norms, wanted[-1].norms, strict=True))

    def _outcome(self, name: str) -> Outcome:
        """Return a contestant's outcome; one without turns if it does not take part."""
        return self.outcomes.get(name, Outcome())


def median_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Return the median of the ratios of values measured in the same round; None without rounds.

    Machine noise that lasts for a whole round affects both values, and cancels in the ratio.
    """
    if not numerators or not denominators:
        return None
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def stolen_note(contest: Contest) -> str:
    """Return a note on how much of the timed processor time the host of a virtual machine took."""
    name, outcome = max(contest.outcomes.items(), key=lambda item: item[1].stolen_part)
    return f"steal time was at most {outcome.stolen_part:.1%} of the processors' time in a turn ({name})"


def run_contest(
    workload: Workload, contestants: Sequence[Contestant], conditions: Conditions, *, repeats: int
) -> Contest | str:
    """Let the contestants score the workload, each turn in a fresh process; the order rotates from round to round.

    Returns:
        The contest, or, if the system ends a process that measures for all of them, the reason. A contestant that
        refuses once gets no further turns.
    """
    work = in_child(work_of, workload, conditions.device)
    if isinstance(work, str):
        return work
    contest = Contest(work, outcomes={contestant.name: Outcome() for contestant in contestants})
    for round_index in range(repeats):
        rate = in_child(products_per_second, workload.dtype, conditions)
        if isinstance(rate, str):
            return rate
        contest.flops_per_second.append(rate)
        start = round_index % len(contestants)
        for contestant in (*contestants[start:], *contestants[:start]):
            _take_turn(contest.outcomes[contestant.name], contestant, workload, conditions)
    return contest


def _take_turn(outcome: Outcome, contestant: Contestant, workload: Workload, conditions: Conditions) -> None:
    if outcome.refusal is not None:
        return
    turn = in_child(take_turn, contestant, workload, conditions)
    if isinstance(turn, str):
        outcome.turns, outcome.refusal = [], turn
    else:
        outcome.turns.append(turn)
