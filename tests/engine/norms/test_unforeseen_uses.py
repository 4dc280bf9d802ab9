"""Norms stay exact for parameters used as no rule knows, or by some inputs only, and for code that raises."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.engine.cases import difficult_sequences, largest_error, random_sequence, reference
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.layout_choice import UnscorableModelError

USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "in a list": lambda x, w: torch.stack([w, w]).sum(0) * x,
    "by keyword": lambda x, w: torch.mul(x, other=w),
    "with a factor": lambda x, w: torch.add(x, w, alpha=2),
    "as the data of a product": lambda x, w: x + w @ torch.eye(len(w)),
    "as the data of a linear layer": lambda x, w: x + nn.functional.linear(w, torch.eye(len(w))),
    "scaled before it is added": lambda x, w: x + torch.add(1, w, alpha=3),
}


class Using(nn.Module):
    """A norm layer with another use of its weight."""

    def __init__(self, norm: nn.Module, use: Callable[[Tensor, Tensor], Tensor], from_tokens: int = 0) -> None:
        super().__init__()
        self.norm, self.extra, self._use, self._from_tokens = (
            norm,
            nn.Parameter(torch.randn(32) * 0.5 + 1),
            use,
            from_tokens,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self._use(x, self.extra) if x.shape[1] >= self._from_tokens else x


@pytest.mark.parametrize("use", USES)
def test_a_use_that_no_rule_knows_is_measured_all_the_same(use: str) -> None:
    model = tiny_model("llama")
    model.model.norm = Using(model.model.norm, USES[use])
    engine = Engine(model, name="tiny", method="rules")
    assert engine.info.rules["autograd"] == ["model.norm.extra"]
    expected = reference(model, difficult_sequences(), measured_parameters(model))
    assert largest_error(engine.score(difficult_sequences()).scores, expected) <= 1e-5


@pytest.mark.parametrize("use", ["by keyword", "in a list"])
@pytest.mark.parametrize("parameter", ["extra", "norm"])
def test_a_model_that_takes_another_path_for_long_inputs_is_scored_by_the_reference_and_says_so_once(
    use: str, parameter: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    using = Using(model.model.norm, USES[use], from_tokens=60)
    model.model.norm = using
    if parameter == "norm":  # one that a rule has claimed
        using.extra = using.norm.get_parameter("weight")
    engine = Engine(model, name="tiny", method="rules")
    sequences = [random_sequence(random.Random(0), 30, length) for length in (40, 45)]
    expected = reference(model, sequences, measured_parameters(model))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert largest_error(engine.score(sequences).scores, expected) <= 1e-5
    assert caplog.text.count("a batch was scored by the reference") == 1


def test_parameters_that_text_does_not_reach_keep_the_packed_layout() -> None:
    model = tiny_model("llama")
    model.model.vision_tower = nn.Linear(32, 32)
    engine = Engine(model, name="tiny", method="rules")
    assert engine.info.layout == "packed"
    assert engine.info.rules["unused"] == ["model.vision_tower.weight", "model.vision_tower.bias"]


class Raising(nn.Module):
    """A layer that raises on packed rows: what lies end to end has positions that start again."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, *args: object, position_ids: Tensor | None = None, **options: object) -> Tensor:
        if position_ids is not None and (position_ids.diff() < 0).any():
            raise KeyError("what a model's own code says")
        return self.layer(hidden, *args, position_ids=position_ids, **options)


def test_what_a_model_raises_under_a_layout_means_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.model.layers[0] = Raising(model.model.layers[0])
    with caplog.at_level(logging.INFO):
        engine = Engine(model, name="tiny", method="rules")
    assert 'packed layout: KeyError: "what a model\'s own code says"' in caplog.text
    assert engine.info.layout == "single"
    assert "exact" not in engine.info.rules
    expected = reference(model, difficult_sequences(), measured_parameters(model))
    assert largest_error(engine.score(difficult_sequences()).scores, expected) <= 1e-5


def test_a_model_that_cannot_score_text_at_all_is_refused_at_load_with_what_it_raises() -> None:
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda *_: {}["pixel_values"])
    with pytest.raises(UnscorableModelError, match="LlamaForCausalLM cannot score text: KeyError: 'pixel_values'"):
        Engine(model, name="tiny")


def test_a_model_whose_logits_are_drawn_anew_each_time_is_refused() -> None:
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _module, _inputs, output: output + torch.randn_like(output))
    with pytest.raises(UnscorableModelError, match="LlamaForCausalLM gives other logits for the same ids each time"):
        Engine(model, name="tiny")


def test_a_model_without_a_backward_pass_is_refused() -> None:
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _module, _inputs, output: output.detach())
    with pytest.raises(UnscorableModelError, match="LlamaForCausalLM has no gradient: RuntimeError"):
        Engine(model, name="tiny", parameters="norms")
