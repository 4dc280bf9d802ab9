"""The engine as the service sees it."""

from __future__ import annotations

import logging
from operator import methodcaller

import pytest
import torch
from torch import nn

from tests.engine.cases import difficult_sequences, largest_error
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import exact_score


def test_the_info_says_what_is_measured_and_how() -> None:
    info = Engine(tiny_model("qwen2-tied"), name="tiny").info
    assert (info.model, info.architecture, info.dtype, info.device) == ("tiny", "Qwen2ForCausalLM", "float32", "cpu")
    assert info.num_parameters == info.num_measured_parameters == tiny_model("qwen2-tied").num_parameters()
    assert (info.max_sequence_tokens, info.vocab_size, info.tied_embeddings) == (256, 320, True)
    assert info.layout == "packed"
    assert set(info.rules) == {"tied embedding and head", "linear", "affine"}
    assert info.rules["tied embedding and head"] == ["model.embed_tokens.weight"]


def test_every_measured_parameter_is_under_exactly_one_rule() -> None:
    model = tiny_model("gpt2")
    names = [name for group in Engine(model, name="tiny").info.rules.values() for name in group]
    assert sorted(names) == sorted(measured_parameters(model))


def test_tied_tensors_are_listed_once_with_their_aliases() -> None:
    engine = Engine(tiny_model("qwen2-tied"), name="tiny")
    assert engine.aliases() == {"model.embed_tokens.weight": ["lm_head.weight"]}
    assert "lm_head.weight" not in engine.tensors()
    assert Engine(tiny_model("llama"), name="tiny").aliases() == {}


def test_loading_tensors_changes_scores_to_those_of_the_other_model() -> None:
    engine = Engine(tiny_model("qwen2-tied"), name="tiny")
    other = tiny_model("qwen2-tied")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    sequences = difficult_sequences()
    other_engine = Engine(other, name="other", method="rules")
    expected = other_engine.score(sequences).scores
    assert largest_error(engine.score(sequences).scores, expected) > 1e-3
    engine.load((name, methodcaller("copy_", values)) for name, values in other_engine.tensors().items())
    assert largest_error(engine.score(sequences).scores, expected) <= 1e-6


def test_a_model_that_the_fast_path_refuses_is_scored_by_the_reference_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with caplog.at_level(logging.WARNING):
        engine = Engine(model, name="tiny")
    assert "scoring one sequence at a time: the output head is a Sequential" in caplog.text
    assert engine.info.layout == "single"
    assert list(engine.info.rules) == ["exact"]
    parameters = measured_parameters(model)
    sequences = difficult_sequences()
    expected = [exact_score(model, sequence, parameters) for sequence in sequences]
    assert largest_error(engine.score(sequences).scores, expected) <= 1e-6


def test_a_fast_norm_that_disagrees_with_the_reference_is_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda gradient: 3 * gradient)  # the reference sees it, a rule cannot
    with caplog.at_level(logging.WARNING):
        engine = Engine(model, name="tiny")
    assert "the norm of linear (weights) is off by" in caplog.text
    assert engine.info.layout == "single"


def test_estimated_norms_are_told_from_exact_ones() -> None:
    sequences = difficult_sequences()
    exact = Engine(tiny_model("llama"), name="tiny", method="rules")
    estimating = Engine(tiny_model("llama"), name="tiny", norm_probes=3)
    assert (exact.info.norm_probes, estimating.info.norm_probes) == (None, 3)
    assert estimating.info.layout == "packed"
    assert 1e-3 < largest_error(estimating.score(sequences).scores, exact.score(sequences).scores) < 0.5


def test_the_reference_never_estimates() -> None:
    model, sequences = tiny_model("llama"), difficult_sequences()
    model.lm_head = nn.Sequential(model.lm_head)
    engine = Engine(model, name="tiny", norm_probes=3)
    assert engine.info.norm_probes is None
    expected = [exact_score(model, sequence, measured_parameters(model)) for sequence in sequences]
    assert largest_error(engine.score(sequences).scores, expected) <= 1e-6


@pytest.mark.parametrize("norm_probes", [0, -3])
def test_no_probes_are_refused(norm_probes: int) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Engine(tiny_model("llama"), name="tiny", norm_probes=norm_probes)
