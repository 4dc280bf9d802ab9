"""A token of probability 0 spoils no norm: 0 · log 0 is 0, and only the self-certainty is infinite."""

from __future__ import annotations

from math import inf, isfinite

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.support.tiny_models import tiny_model
from vigor_service.engine.attribution.attribution import attribute
from vigor_service.engine.batching.packing import pack
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.head import Head, head_loss
from vigor_service.engine.sequences import TokenSequence

MASKED = 300  # the token whose logit is -inf
SEQUENCE = TokenSequence((7, 8), (9, 10, 11))


def masked_model() -> PreTrainedModel:
    model = tiny_model("gptj")
    with torch.no_grad():
        model.get_parameter("lm_head.bias")[MASKED] = -inf
    return model


def entropy_without_the_masked(model: PreTrainedModel) -> float:
    with torch.no_grad():
        logits_LV = model(input_ids=torch.tensor([SEQUENCE.token_ids])).logits[0]
    others_TV = logits_LV[SEQUENCE.loss_positions()][:, [token for token in range(320) if token != MASKED]]
    return torch.distributions.Categorical(logits=others_TV.double()).entropy().mean().item()


def test_the_reference_and_the_engine_give_a_norm_and_an_entropy() -> None:
    model = masked_model()
    expected = entropy_without_the_masked(model)
    score = exact_score(model, SEQUENCE, measured_parameters(model))
    (served,) = Engine(model, name="masked").score([SEQUENCE]).scores
    for found in (score, served):
        assert found.mean_entropy == pytest.approx(expected, rel=1e-5)
        assert isfinite(found.grad_norm)
        assert found.self_certainty == inf
    assert served.grad_norm == pytest.approx(score.grad_norm, rel=1e-5)


def test_its_norm_is_attributed() -> None:
    model = masked_model()
    attribution = attribute(model, SEQUENCE, [measured_parameters(model)])
    assert sum(attribution.position_shares) + attribution.unresolved_share == pytest.approx(1, abs=1e-5)


def test_a_completion_that_holds_the_masked_token_has_a_norm_and_no_probability() -> None:
    model = masked_model()
    score = exact_score(model, TokenSequence((7, 8), (9, MASKED)), measured_parameters(model))
    assert score.mean_logprob == -inf
    assert isfinite(score.grad_norm)  # softmax - onehot is finite


def test_the_fast_head_gives_the_shares_and_the_signals_of_the_others() -> None:
    batch = pack([SEQUENCE], torch.device("cpu"))
    weight_VD, bias_V = torch.randn(1030, 6), torch.randn(1030)
    bias_V[1027] = -inf
    hidden_MD = torch.randn(3, 6, requires_grad=True)
    context = NormContext(batch)
    total, signals = head_loss(hidden_MD, Head(weight_VD, bias_V, 1.0, None, True, True), context)
    found = torch.autograd.grad(total, [hidden_MD, context.squared_norms_B])

    kept = [token for token in range(1030) if token != 1027]
    free = [weight_VD[kept].requires_grad_(), bias_V[kept].requires_grad_()]
    logits_MV = F.linear(hidden_MD, *free)
    loss = F.cross_entropy(logits_MV, batch.targets_M, reduction="sum")
    expected, *gradients = torch.autograd.grad(loss, [hidden_MD, *free])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1][0].float(), sum(gradient.square().sum() for gradient in gradients))
    torch.testing.assert_close(signals.entropy_M, torch.distributions.Categorical(logits=logits_MV).entropy())
    assert signals.self_certainty_M.tolist() == [inf] * 3


def test_a_logit_that_is_no_number_makes_every_signal_none() -> None:
    batch = pack([SEQUENCE], torch.device("cpu"))
    weight_VD = torch.randn(50, 6)
    weight_VD[40] = torch.nan
    context = NormContext(batch)
    hidden_MD = torch.randn(3, 6, requires_grad=True)
    total, signals = head_loss(hidden_MD, Head(weight_VD, None, 1.0, None, True, False), context)
    (share_B,) = torch.autograd.grad(total, [context.squared_norms_B])
    for numbers in (share_B, signals.nll_M, signals.entropy_M, signals.self_certainty_M):
        assert numbers.isnan().all()
