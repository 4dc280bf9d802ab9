"""The report of approximations: what its numbers are made of."""

from __future__ import annotations

import random
import re

import pytest
from torch import nn

from benchmarks.fidelity import EXACT, VARIANTS, Outcome, Variant, make_engine, measure, table_row
from benchmarks.sampling import SampledGroup
from tests.engine.cases import random_sequence
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from vigor_service.engine.loading.loading import Policy
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import exact_score
from vigor_service.settings import Settings


def tiny_policy() -> Policy:
    return Policy(tiny_model("qwen2-tied"), tiny_tokenizer(), "tiny")


def test_the_first_variant_is_the_exact_norm_and_none_stands_twice() -> None:
    assert VARIANTS[0] == EXACT == Variant(parameters=None, norm_probes=None, dtype="float32")
    assert len(set(VARIANTS)) == len(VARIANTS)


def test_a_variant_is_named_by_the_flags_of_the_service() -> None:
    assert EXACT.flags == "--dtype float32"
    flags = Variant("norms", 16, "bfloat16").flags
    assert flags == "--dtype bfloat16 --parameters norms --norm-probes 16"
    assert {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", flags)} <= set(Settings.model_fields)


def test_every_group_is_scored_by_every_variant_in_its_own_order() -> None:
    policy, rng = tiny_policy(), random.Random(0)
    one, two, three = (random_sequence(rng, 5, length) for length in (4, 9, 30))
    groups = [SampledGroup("first", (two, one, two)), SampledGroup("second", (three, one))]
    variants = [EXACT, Variant(norm_probes=2), Variant(r"layers\.1\.")]
    outcomes = measure({variant: make_engine(policy, variant) for variant in variants}, groups)
    parameters = measured_parameters(policy.model)
    expected = [[exact_score(policy.model, s, parameters).scaled_grad_norm for s in g.sequences] for g in groups]
    for norms, wanted in zip(outcomes[EXACT].norms, expected, strict=True):
        assert norms == pytest.approx(wanted, rel=1e-5)
    assert outcomes[EXACT].norms[0][0] == outcomes[EXACT].norms[0][2], "equal completions are computed once"
    assert outcomes[Variant(norm_probes=2)].norms[1] != pytest.approx(expected[1], rel=1e-5)
    assert all(len(outcome.seconds) == len(groups) for outcome in outcomes.values())


def test_a_model_that_only_the_reference_scores_is_refused() -> None:
    policy = tiny_policy()
    head = policy.model.get_output_embeddings()
    assert head is not None
    policy.model.set_output_embeddings(nn.Sequential(head))
    with pytest.raises(RuntimeError, match=r"--dtype float32: the fast path does not score tiny"):
        make_engine(policy, EXACT)


def test_a_row_holds_agreement_error_and_cost() -> None:
    exact = Outcome([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]], [2.0, 4.0])
    estimate = Outcome([[1.0, 2.2, 3.0], [2.0, 1.0, 4.0]], [1.0, 3.0])
    cells = table_row(Variant(norm_probes=4), estimate, exact)
    assert cells == "| `--dtype float32 --norm-probes 4` | 0.667 | 0.33 | 0.750 | 1 of 2 | 1.0e+00 | 2.00 | 0.62× |"
    assert table_row(Variant("norms"), estimate, exact).split(" | ")[5] == "–"
