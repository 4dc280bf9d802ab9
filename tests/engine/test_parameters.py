"""Which parameters are measured."""

from __future__ import annotations

import pytest
from torch import nn

from tests.tiny_models import tiny_model
from vigor_service.engine.parameters import measured_parameters


def test_all_parameters_are_measured_and_tied_ones_once() -> None:
    names = measured_parameters(tiny_model("qwen2-tied"))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_lora_parameters_are_the_default_where_there_are_any() -> None:
    model = nn.ModuleDict({"lora_A": nn.Linear(2, 2), "base": nn.Linear(2, 2)})
    assert list(measured_parameters(model)) == ["lora_A.weight", "lora_A.bias"]
    assert len(measured_parameters(model, "all")) == 4


def test_a_regular_expression_is_searched_in_names() -> None:
    assert list(measured_parameters(tiny_model(), r"layers\.1\..*q_proj")) == ["model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize("selection", ["lora", "no_such_name"])
def test_a_selection_of_nothing_is_refused(selection: str) -> None:
    with pytest.raises(ValueError, match="selects none"):
        measured_parameters(tiny_model(), selection)


def test_a_broken_expression_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'\(' is neither 'all', 'lora' nor a regular expression"):
        measured_parameters(tiny_model(), "(")
