"""The reference equals what its definition says, computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.tiny_models import VOCAB_SIZE, tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import ELEMENTS_AT_ONCE, exact_score
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.sequences import TokenSequence


def test_the_norm_is_that_of_the_gradient_which_backward_leaves_behind() -> None:
    model = tiny_model("qwen2-tied")
    model.requires_grad_(True)
    labels = torch.tensor([[-100, -100, 9, -100, 11]])
    model(input_ids=torch.tensor([[7, 8, 9, 10, 11]]), labels=labels).loss.backward()
    norm = sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))
    model.zero_grad()
    sequence = TokenSequence((7, 8), (9, 10, 11), (True, False, True))
    score = exact_score(model, sequence, measured_parameters(model))
    assert score.grad_norm == pytest.approx(norm, rel=1e-6)
    assert score.scaled_grad_norm == pytest.approx(norm * sqrt(2), rel=1e-6)
    assert score.num_loss_tokens == 2


def test_the_signals_are_those_of_the_predicted_distribution() -> None:
    model = tiny_model()
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[7, 8, 9]])).logits[0, 1].log_softmax(-1)
    score = exact_score(model, TokenSequence((7, 8), (9,)), measured_parameters(model))
    assert score.mean_logprob == pytest.approx(logprobs[9].item(), abs=1e-6)
    assert score.mean_entropy == pytest.approx(-(logprobs.exp() @ logprobs).item(), abs=1e-5)
    assert score.self_certainty == pytest.approx(-logprobs.mean().item() - log(VOCAB_SIZE), abs=1e-5)


def test_scoring_restores_what_requires_gradients_and_the_mode() -> None:
    model = tiny_model()
    model.requires_grad_(False).train()
    model.lm_head.weight.requires_grad_(True)
    exact_score(model, TokenSequence((7, 8), (9,)), measured_parameters(model, "norm"))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["lm_head.weight"]
    assert model.training


def test_dropout_is_off_even_when_the_model_was_training() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5)
    sequence = TokenSequence((7, 8), (9, 10))
    scores = {exact_score(model.train(), sequence, measured_parameters(model)).grad_norm for _ in range(2)}
    assert len(scores) == 1


class LargestFloat64(TorchDispatchMode):
    """Remembers how many elements the largest float64 tensor had that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (4097, 4099)])
def test_a_gradient_is_squared_without_a_float64_copy_of_all_of_it(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape)
    with LargestFloat64() as largest:
        squared = squared_norm(gradient)
    assert largest.num_elements <= ELEMENTS_AT_ONCE
    torch.testing.assert_close(squared, gradient.double().square().sum())
