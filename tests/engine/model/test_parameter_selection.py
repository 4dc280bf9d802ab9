"""Which parameters are measured."""

from __future__ import annotations

import re

import pytest
from torch import nn

from tests.support.tiny_models import tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters


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


@pytest.mark.parametrize(
    ("family", "selected"),
    [
        ("llama", {"model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm", "model.norm"}),
        ("gpt2", {"transformer.h.*.ln_1", "transformer.h.*.ln_2", "transformer.ln_f"}),
        (
            "gemma3",
            {
                *(f"model.layers.*.{name}_layernorm" for name in ("input", "post_attention")),
                *(f"model.layers.*.{name}_feedforward_layernorm" for name in ("pre", "post")),
                *(f"model.layers.*.self_attn.{name}_norm" for name in "qk"),
                "model.norm",
            },
        ),
        ("mamba", {"backbone.layers.*.norm", "backbone.norm_f"}),
    ],
)
def test_norms_are_the_parameters_of_norm_layers_alone(family: str, selected: set[str]) -> None:
    names = measured_parameters(tiny_model(family), "norms")
    assert {
        re.sub(r"\d+", "*", name.rpartition(".")[0], count=1)
        if "layers" in name or ".h." in name
        else name.rpartition(".")[0]
        for name in names
    } == selected


@pytest.mark.parametrize(
    ("family", "beside_the_layers"),
    [
        ("llama", {"model.norm.weight", "lm_head.weight"}),
        ("qwen2-tied", {"model.norm.weight"}),  # the head is the input embedding
        ("gpt2", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("opt", {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"}),
        ("bloom", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),  # not the norm behind its embedding
        ("gptj", {"transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight", "lm_head.bias"}),
        ("mamba", {"backbone.norm_f.weight"}),
    ],
)
def test_last_layers_come_with_what_runs_after_them_and_without_what_also_runs_before(
    family: str, beside_the_layers: set[str]
) -> None:
    model = tiny_model(family)
    names = set(measured_parameters(model, "last-1-layers"))
    last = {name for name, _ in model.named_parameters() if re.search(r"\.(layers|h)\.1\.", name)}
    assert names == last | beside_the_layers
    assert set(measured_parameters(model, "last-2-layers")) - names == {name.replace(".1.", ".0.") for name in last}


@pytest.mark.parametrize("count", [0, 3])
def test_a_number_of_layers_that_the_model_does_not_have_is_refused_by_name(count: int) -> None:
    with pytest.raises(ValueError, match=f"'last-{count}-layers': the model has 2 layers, K is from 1 to that"):
        measured_parameters(tiny_model(), f"last-{count}-layers")


def test_a_broken_expression_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"'\(' is neither 'all', 'lora', 'norms', 'last-K-layers' nor a regular expression"
    ):
        measured_parameters(tiny_model(), "(")
