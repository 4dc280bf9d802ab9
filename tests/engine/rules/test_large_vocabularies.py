"""With 262,144 tokens and an output embedding with a common direction, norms are those of a loop in float64.

The last norm's weights lift the logits of three tokens far above the others, as a sure model does. Then a float32 sum
over the vocabulary loses many of the small terms, and what a row of softmax - onehot is away from zero is multiplied by
the common direction: a log-softmax in float32 is off by 1e-4 to 6e-4 here.
"""

from __future__ import annotations

import copy
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.engine.cases import largest_error, reference
from tests.support.tiny_models import tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.ops.gram import gram_blocks
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.rules.head import hidden_gradient
from vigor_service.engine.rules.head_shares import LongSequence
from vigor_service.engine.rules.softmax import softmax_gradient
from vigor_service.engine.sequences import SequenceScore, TokenSequence

NUM_TOKENS = 262_144
LIKELY = 20.0  # logits of three tokens; the others have a standard deviation of 1.5 about 0
SEQUENCES = [
    TokenSequence((9, 77_000, 5), tuple(13_107 * index % NUM_TOKENS + 7 for index in range(20))),
    TokenSequence((5, 9, 77), (0, 1, 2, 0, 1, 2, 1, 1, 100_000)),  # what the model is sure of
    TokenSequence((5, 9), (0, 77)),
]


def sure_model(*, tied: bool, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny_model(
        "qwen3", vocab_size=NUM_TOKENS, num_hidden_layers=1, initializer_range=0.1, tie_word_embeddings=tied
    )
    random = torch.Generator().manual_seed(1)
    norm_D = model.get_parameter("model.norm.weight")
    table_VD = model.get_input_embeddings().get_parameter("weight")
    head_VD = model.get_parameter("lm_head.weight")
    with torch.no_grad():
        norm_D.copy_(10 * (1 + torch.randn(len(norm_D), generator=random)))
        common_D = F.normalize(torch.randn(len(norm_D), generator=random), dim=0)
        hidden_D = common_D * norm_D * len(norm_D) ** 0.5  # about what the head is given
        head_VD.normal_(0, 1.5 / hidden_D.norm().item(), generator=random)
        if not tied:
            table_VD.normal_(0, 0.3, generator=random).add_(3 * common_D)
            common_D = torch.randn(len(norm_D), generator=random)
            common_D -= hidden_D * (common_D @ hidden_D) / hidden_D.square().sum()
            common_D = F.normalize(common_D, dim=0)  # the logits stay as they are
        head_VD += 3 * common_D
        head_VD[:3] += LIKELY * hidden_D / hidden_D.square().sum()
    return model.bfloat16() if dtype == torch.bfloat16 else model


def float64_loop(model: PreTrainedModel) -> list[SequenceScore]:
    """Run a float64 copy; tied weights are one parameter of it."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    scores: list[SequenceScore] = []
    for sequence in SEQUENCES:
        logits_LV = model(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).logits[0]
        logprobs_TV = logits_LV[sequence.loss_positions()].log_softmax(-1)
        loss = F.nll_loss(logprobs_TV, torch.tensor(sequence.loss_targets()))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        entropy = -(logprobs_TV.exp() * logprobs_TV).sum(-1).mean().item()
        certainty = -logprobs_TV.mean().item() - torch.tensor(NUM_TOKENS, dtype=torch.float64).log().item()
        probability = logprobs_TV[range(len(logprobs_TV)), sequence.loss_targets()].exp().mean().item()
        scores.append(SequenceScore(sequence.num_loss_tokens, norm, -loss.item(), entropy, certainty, probability))
    return scores


@torch.no_grad()
def logit_error(model: PreTrainedModel) -> float:
    """Return how far float32 logits are from float64 ones: logits of 117 by 5e-5, depending on how the machine rounds.

    It moves a log-probability and a probability by twice that at most, and an entropy here by less.
    """
    double = copy.deepcopy(model).double()
    both = [[kind(input_ids=torch.tensor([each.token_ids])).logits for each in SEQUENCES] for kind in (model, double)]
    return max((single - exact).abs().max().item() for single, exact in zip(*both, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_norms_and_signals_are_those_of_a_float64_loop(tied: bool) -> None:
    model = sure_model(tied=tied)
    expected, parameters = float64_loop(model), measured_parameters(model)
    rounding = logit_error(model)
    for scores in (reference(model, SEQUENCES, parameters), FastNorms(model, parameters).score(SEQUENCES)):
        assert largest_error(scores, expected) <= 1e-5
        for score, wanted in zip(scores, expected, strict=True):
            for name in ("mean_logprob", "mean_entropy", "self_certainty", "mean_probability"):
                assert getattr(score, name) == pytest.approx(getattr(wanted, name), rel=1e-5, abs=2 * rounding), name


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_in_bfloat16_norms_are_as_near_as_its_rounding_lets_them(tied: bool) -> None:
    model = sure_model(tied=tied, dtype=torch.bfloat16)
    expected, parameters = float64_loop(model), measured_parameters(model)
    assert largest_error(FastNorms(model, parameters).score(SEQUENCES), expected) <= 2e-2


def sure_logits(num_rows: int) -> torch.Tensor:
    logits_RV = 1.5 * torch.randn(num_rows, NUM_TOKENS)
    logits_RV[:, :3] = LIKELY
    return logits_RV


def test_a_row_of_the_gradient_sums_to_zero_also_where_the_target_is_sure() -> None:
    logits_RV, targets_R = sure_logits(5), torch.tensor([0, 1, 5, NUM_TOKENS - 1, 100_000])
    logits_RV[1, 1] += 12
    exact_RV = logits_RV.double().softmax(-1)
    exact_RV -= F.one_hot(targets_R, NUM_TOKENS)
    gradient_RV, _ = softmax_gradient(logits_RV, targets_R)
    largest_R = exact_RV.abs().amax(-1)
    assert (gradient_RV.double().sum(-1).abs() / largest_R).max() <= 1e-6
    assert ((gradient_RV - exact_RV).norm(dim=-1) / exact_RV.norm(dim=-1)).max() <= 1e-5


@pytest.mark.parametrize("num_rows", [1, 2, 3, 9])
def test_the_product_with_a_weight_of_a_common_direction_is_exact_to_rounding(num_rows: int) -> None:
    gradient_RV, _ = softmax_gradient(sure_logits(num_rows), torch.arange(num_rows) + 7)
    before_RV, weight_VD = gradient_RV.clone(), 0.1 * torch.randn(NUM_TOKENS, 16) + 3
    expected_RD = gradient_RV.double() @ weight_VD.double()
    error = ((hidden_gradient(gradient_RV, weight_VD) - expected_RD).norm() / expected_RD.norm()).item()
    assert error <= 1e-5
    assert torch.equal(gradient_RV, before_RV)


def test_a_gram_matrix_over_the_vocabulary_is_exact_to_rounding() -> None:
    rows_TV = torch.randn(3, NUM_TOKENS).softmax(-1)
    (gram_TT,) = gram_blocks(rows_TV)
    torch.testing.assert_close(gram_TT.double(), rows_TV.double() @ rows_TV.double().T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(), (3, 5), (1025,), (NUM_TOKENS, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_a_large_matrix_is_exact_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(squared_norm(tensor), tensor.double().square().sum(), rtol=1e-6, atol=0)


def test_a_long_sequence_has_the_share_of_all_its_rows() -> None:
    gradient_RV, hidden_RD = softmax_gradient(sure_logits(8), torch.arange(8))[0], torch.randn(8, 48)
    sequence = LongSequence(nn.Parameter(torch.empty(NUM_TOKENS, 48)), measures_weight=True, measures_bias=True)
    for rows in (slice(0, 5), slice(5, 8)):
        sequence.add(hidden_RD[rows], gradient_RV[rows])
    gradient = (gradient_RV.double().T @ hidden_RD.double()).square().sum() + gradient_RV.double().sum(0).square().sum()
    torch.testing.assert_close(sequence.weight_share() + sequence.bias_share(), gradient, rtol=1e-6, atol=0)
