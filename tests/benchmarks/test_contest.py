"""Workloads, and what is made of their measurements."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.child import attempt
from benchmarks.contest import Contest, Outcome, median_of_ratios, run_contest, stolen_note
from benchmarks.contestants import ENGINE, IDEAL, LOOPS, Contestant
from benchmarks.turn import Conditions, Turn, Work
from benchmarks.workloads import ON_A_CPU, Workload, parse_workload
from tests.support.tiny_models import tiny_model
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import TokenSequence

GROUP = [TokenSequence((1, 2, 3), tuple(range(7, 7 + length))) for length in (9, 6, 1)]


def contest(**outcomes: Outcome) -> Contest:
    named = {"ideal": IDEAL, "engine": ENGINE}
    return Contest(Work("m", 10, 10, 100, 80), [50.0, 100.0, 200.0], {named[k]: v for k, v in outcomes.items()})


def turns(seconds: list[float], peak_mib: int, norms: list[float]) -> Outcome:
    return Outcome([Turn(norms, each, i / 100, (peak_mib - i) << 20, None) for i, each in enumerate(seconds)])


def test_the_ratio_is_the_median_of_the_rounds_and_not_of_the_times() -> None:
    assert median_of_ratios([3.0, 30.0, 2.0], [1.0, 10.0, 2.0]) == 3.0
    assert median_of_ratios([], []) is None


def test_a_contest_compares_within_its_rounds() -> None:
    both = contest(
        ideal=turns([3.0, 8.0, 4.0], 300, norms=[1.0, 2.0]), engine=turns([1.0, 4.0, 2.0], 100, norms=[1.0, 2.1])
    )
    assert both.ratio(IDEAL, ENGINE) == 2.0
    assert both.seconds(ENGINE) == 2.0
    assert both.outcomes[ENGINE].peak_mib == 100  # the highest
    assert both.peak_ratio(IDEAL, ENGINE) == 3.0
    assert both.fraction(ENGINE, both.work.lower_bound_flops) == 0.25  # 2 s, 1 s and half a second of 1, 4 and 2
    assert both.difference(ENGINE) == pytest.approx(0.05)
    assert stolen_note(both) == "steal time was at most 2.0% of the processors' time in a turn (ideal loop)"


def test_who_did_not_run_has_no_numbers() -> None:
    refused = contest(ideal=turns([3.0, 3.0, 3.0], 300, norms=[1.0]), engine=Outcome(refusal="RuntimeError: no"))
    assert refused.ratio(ENGINE, IDEAL) is None
    assert refused.seconds(ENGINE) is None
    assert refused.peak_ratio(ENGINE, IDEAL) is None
    assert refused.outcomes[ENGINE].peak_mib is None
    assert refused.outcomes[ENGINE].card_bytes is None
    assert refused.fraction(ENGINE, refused.work.lower_bound_flops) is None
    assert refused.difference(ENGINE) is None


@pytest.mark.slow
def test_who_refuses_once_is_not_asked_again() -> None:
    workload = Workload("w", "tiny", 2, 4, 2, 3)  # tied weights: Opacus refuses them, where it is installed
    opacus = Contestant("Opacus ghost norms", 64)
    contest = run_contest(workload, [opacus], Conditions("cpu"), repeats=2)
    assert isinstance(contest, Contest)
    assert len(contest.flops_per_second) == 2
    outcome = contest.outcomes[opacus.name]
    assert outcome.turns == []
    assert outcome.refusal is not None
    assert outcome.refusal.startswith(("NotImplementedError: Parameter tying is not supported", "opacus is not"))


def test_a_refusal_is_named_by_its_first_line() -> None:
    def refuse() -> None:
        raise NotImplementedError("tied weights\nand a long story")

    assert attempt(refuse) == "NotImplementedError: tied weights"
    assert attempt(lambda: import_module("no_such_library")) == "no_such_library is not installed"
    assert attempt(lambda: 1) is None


@pytest.mark.parametrize("name", [name for name in LOOPS if "Opacus" not in name])
def test_every_loop_computes_the_reference(name: str) -> None:
    model = tiny_model("qwen2")
    wanted = [exact_score(model, sequence, dict(model.named_parameters())).grad_norm for sequence in GROUP]
    model.requires_grad_(True)
    assert LOOPS[name](model, GROUP) == pytest.approx(wanted, rel=1e-5)


def test_opacus_computes_the_reference_and_refuses_tied_weights() -> None:
    pytest.importorskip("opacus", reason="Opacus is in the extra `benchmarks`, not in `dev`")
    model, tied = tiny_model("qwen2"), tiny_model("qwen2-tied")
    wanted = [exact_score(model, sequence, dict(model.named_parameters())).grad_norm for sequence in GROUP]
    opacus_norms = LOOPS["Opacus ghost norms"]
    model.requires_grad_(True)
    tied.requires_grad_(True)
    assert opacus_norms(model, GROUP) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(NotImplementedError, match="tying"):
        opacus_norms(tied, GROUP)
    assert not model.training
    assert not any(module._forward_hooks or module._backward_hooks for module in tied.modules())


def test_a_workload_cuts_its_group_from_one_text() -> None:
    prompt_and_more = list(range(20))
    group = Workload("w", None, 3, 4, 2, 8).sequences(prompt_and_more)
    assert [sequence.prompt_ids for sequence in group] == [(0, 1, 2, 3)] * 3
    assert [len(sequence.completion_ids) for sequence in group] == [2, 5, 8]
    assert group[0].completion_ids + group[1].completion_ids == (4, 5, 6, 7, 8, 9, 10)
    assert group[2].completion_ids == (11, 12, 13, 14, 15, 16, 17, 18)


def test_a_text_that_ends_starts_again() -> None:
    (sequence,) = Workload("w", None, 1, 2, 4, 4).sequences([5, 6, 7])
    assert sequence.completion_ids == (7, 5, 6, 7)


def test_workloads_are_known_by_name_or_spelled_out() -> None:
    assert parse_workload("short") is ON_A_CPU[0]
    spelled = parse_workload("tiny,3,6,4,9,bfloat16")
    assert (spelled.model, spelled.completion_lengths(), spelled.dtype) == ("tiny", [4, 6, 9], "bfloat16")
    for wrong in ("shortest", "tiny,3,6", "tiny,3,6,4,x"):
        with pytest.raises(ValueError, match="neither one of short, long"):
            parse_workload(wrong)
