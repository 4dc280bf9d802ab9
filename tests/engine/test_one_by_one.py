"""Of two exact ways, the faster one is taken for each length."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.engine.cases import largest_error, random_sequence, reference
from tests.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.fast_norms import FastNorms
from vigor_service.engine.one_by_one import OneByOne
from vigor_service.engine.parameters import measured_parameters


def clock(durations_seconds: list[float]) -> Callable[[], float]:
    """Return a clock whose readings come in pairs, that far apart; further ones are an error."""
    readings = iter([reading for seconds in durations_seconds for reading in (0.0, seconds)])
    return lambda: next(readings)


@pytest.mark.parametrize(
    ("rules_seconds", "loop_seconds", "faster"),
    [([3.0, 1.0], [2.0, 2.0], "rules"), ([3.0, 3.0], [9.0, 2.0], "loop")],
)
def test_each_length_is_timed_once_in_both_ways_and_the_faster_one_is_taken(
    rules_seconds: list[float], loop_seconds: list[float], faster: str
) -> None:
    model = tiny_model("bloom")
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)
    one_by_one = OneByOne(fast, model, parameters, clock_seconds=clock(rules_seconds + loop_seconds))
    sequences = [random_sequence(random.Random(seed), 5, 8 + seed) for seed in range(3)]  # of 13 to 15 tokens
    expected = reference(model, sequences, parameters)
    for _ in range(2):
        assert largest_error(one_by_one.score(sequences), expected) <= 1e-5
    assert one_by_one._faster == {4: faster}


def test_an_engine_that_estimates_norms_does_not_ask_the_reference() -> None:
    assert Engine(tiny_model("bloom"), name="tiny")._one_by_one is not None
    assert Engine(tiny_model("bloom"), name="tiny", norm_probes=4)._one_by_one is None
    assert Engine(tiny_model("llama"), name="tiny")._one_by_one is None
