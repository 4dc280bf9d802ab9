"""The faster of two exact methods is taken for each length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest

from tests.engine.cases import largest_error, random_sequence, reference
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.faster_method import FasterMethod
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.sequences import SequenceScore, TokenSequence

SEQUENCES = [random_sequence(random.Random(seed), 5, 8 + seed) for seed in range(3)]  # of 13 to 15 tokens
LONG = random_sequence(random.Random(0), 20, 20)


def clock(durations_seconds: Sequence[float]) -> Callable[[], float]:
    """Return a clock whose readings come in pairs, that far apart; further ones are an error."""
    readings = iter([reading for seconds in durations_seconds for reading in (0.0, seconds)])
    return lambda: next(readings)


class Rules:
    """The rules of a tiny model; remembers how many sequences each call had."""

    def __init__(self, fast: FastNorms) -> None:
        self._fast = fast
        self.calls: list[int] = []

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        self.calls.append(len(sequences))
        return self._fast.score(sequences)


def choices(
    seconds: Sequence[float], *, free_bytes: int | None = None
) -> tuple[FasterMethod, Rules, list[SequenceScore]]:
    """Return a choice by this clock, its rules, and what ``SEQUENCES`` should score."""
    model = tiny_model("bloom")
    parameters = measured_parameters(model)
    rules = Rules(FastNorms(model, parameters))
    slow = Reference(model, parameters, free_bytes=lambda _: free_bytes, num_threads=2)
    return FasterMethod(rules, slow, clock_seconds=clock(seconds)), rules, expected_scores()


@cache
def expected_scores() -> list[SequenceScore]:
    """Score ``SEQUENCES`` by the reference, once for all tests."""
    model = tiny_model("bloom")
    return reference(model, SEQUENCES, measured_parameters(model))


@pytest.mark.parametrize(
    ("seconds", "faster"),
    [
        ([0.9, 0.7], "reference"),
        ([0.7, 0.9], "rules"),
        ([0.1, 0.2, 0.4, 0.3, 0.4, 0.3], "rules"),  # the least of three runs of each counts
        ([0.4, 0.3, 0.4, 0.3, 0.1, 0.2], "rules"),
        ([0.4, 0.9, 0.4, 0.1, 0.4, 0.9], "reference"),
        ([10.1], "rules"),  # another run would keep callers waiting
    ],
)
def test_a_length_is_timed_once_with_both_methods_and_the_faster_one_is_taken(
    seconds: list[float], faster: str
) -> None:
    choice, _, expected = choices(seconds)
    for _ in range(2):
        assert largest_error(choice.score(SEQUENCES), expected) <= 1e-5
    assert choice._faster == {(4, False): faster}


def test_other_lengths_and_a_sequence_alone_are_timed_for_themselves() -> None:
    choice, rules, _ = choices([0.7, 0.9, 0.9, 0.7, 0.9, 0.7])
    scores = choice.score([*SEQUENCES, LONG])
    assert choice._faster == {(4, False): "rules", (6, False): "reference"}
    assert rules.calls == [3, 1, 3]  # a trial of each length, then those that the rules are faster for
    assert choice.score([LONG]) == [scores[-1]]
    assert choice._faster[6, True] == "reference"


def test_a_sequence_that_comes_twice_is_scored_once() -> None:
    choice, rules, expected = choices([0.7, 0.9])
    choice.score(SEQUENCES)
    assert largest_error(choice.score([*SEQUENCES, *SEQUENCES]), [*expected, *expected]) <= 1e-5
    assert rules.calls[-1] == len(SEQUENCES)


def test_the_reference_is_not_tried_where_its_gradients_do_not_fit_into_memory() -> None:
    choice, rules, expected = choices([], free_bytes=1 << 10)
    assert largest_error(choice.score(SEQUENCES), expected) <= 1e-5
    assert rules.calls == [len(SEQUENCES)]


def test_an_engine_that_estimates_norms_does_not_ask_the_reference() -> None:
    estimating = Engine(tiny_model("llama"), name="tiny", norm_probes=2)
    by_rules = Engine(tiny_model("llama"), name="tiny", method="rules")
    exact = by_rules.score(SEQUENCES).scores
    assert largest_error(estimating.score(SEQUENCES).scores, exact) > 1e-3
    assert largest_error(Engine(tiny_model("llama"), name="tiny").score(SEQUENCES).scores, exact) <= 1e-5
