"""Each rule's share equals the squared norm of the gradient that autograd finds, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigor_service.engine.batching.packing import PackedBatch, pack
from vigor_service.engine.norms.op_interception import Claim, NormInterception, UnclaimedCallError
from vigor_service.engine.ops.gram import gram_blocks, inner_product_, weighted_gram_blocks
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.embedding import DistinctIds
from vigor_service.engine.rules.experts import Routing, experts_linear
from vigor_service.engine.rules.head import Head, head_loss, hidden_gradient
from vigor_service.engine.rules.linear import gram_is_cheaper
from vigor_service.engine.sequences import TokenSequence


@pytest.fixture(autouse=True)
def _default_device(device: torch.device) -> Iterator[None]:
    """Let tensors of this module's tests be made on the device."""
    torch.set_default_device(None if device.type == "cpu" else device)
    yield
    torch.set_default_device(None)


def batch_of(*num_tokens: int) -> PackedBatch:
    """Return a batch of sequences that condition so many tokens each; ids repeat."""
    return pack(
        [TokenSequence(tuple(t % 5 for t in range(count)), (3,)) for count in num_tokens], torch.get_default_device()
    )


def assert_shares(
    operation: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    x: Tensor,
    batch: PackedBatch,
    token_axis: int = 1,
) -> None:
    """Compare the rule with autograd, under a random gradient at the operation's output."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    output = operation(x)
    gradient = torch.randn_like(output)
    expected: list[float] = []
    for rows in batch.token_slices:
        only = torch.zeros(output.shape[token_axis])
        only[rows] = 1
        shape = [-1 if axis == token_axis else 1 for axis in range(output.dim())]
        grads = torch.autograd.grad(output, parameters, gradient * only.view(shape), retain_graph=True)
        expected.append(sum(g.double().square().sum().item() for g in grads))
    for parameter in parameters:
        parameter.requires_grad_(False)
    context = NormContext(batch)
    claim = Claim("any", ("parameter",), token_axis)
    interception = NormInterception(dict.fromkeys(parameters, claim), context)
    with interception:
        measured = operation(x)
    interception.check_all_seen()
    torch.testing.assert_close(measured, output)
    (shares_B,) = torch.autograd.grad(measured, context.squared_norms_B, gradient)
    torch.testing.assert_close(shares_B, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def vector(size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(size))


def matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns))


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(3, 5), (64, 48)])  # the gradient itself; Gram matrices
@pytest.mark.parametrize("leading", [(), (1,)])
def test_linear_weight_and_bias(num_inputs: int, num_outputs: int, leading: tuple[int, ...]) -> None:
    batch = batch_of(7, 1, 20)
    assert gram_is_cheaper(7, num_inputs, num_outputs) == (num_inputs == 64)
    weight, bias = matrix(num_outputs, num_inputs), vector(num_outputs)
    x = torch.randn(*leading, batch.num_tokens, num_inputs)
    assert_shares(lambda x: F.linear(x, weight, bias), [weight, bias], x, batch, token_axis=len(leading))
    assert_shares(lambda x: F.linear(x, weight), [weight], x, batch, token_axis=len(leading))
    assert_shares(lambda x: F.linear(x, weight, bias), [bias], x, batch, token_axis=len(leading))


def test_conv1d_as_gpt2_calls_it() -> None:
    batch = batch_of(7, 1, 20)
    weight, bias = matrix(6, 9), vector(9)
    x = torch.randn(batch.num_tokens, 6)
    assert_shares(lambda x: torch.addmm(bias, x, weight), [weight, bias], x, batch, token_axis=0)


def test_norm_weights_with_and_without_heads_on_either_side_of_the_tokens() -> None:
    batch = batch_of(7, 1, 20)
    weight = vector(6)
    x = torch.randn(1, batch.num_tokens, 6)
    assert_shares(lambda x: weight * x, [weight], x, batch)
    assert_shares(lambda x: x * (1.0 + weight.float()), [weight], x, batch)
    heads_last = torch.randn(1, batch.num_tokens, 3, 6)
    assert_shares(lambda x: weight * x, [weight], heads_last, batch)
    assert_shares(lambda x: weight * x, [weight], heads_last.transpose(1, 2), batch, token_axis=2)


def test_a_norm_of_each_head_with_features_of_its_own() -> None:
    batch = batch_of(7, 1, 20)
    weight = matrix(3, 6)
    assert_shares(lambda x: weight.float() * x, [weight], torch.randn(1, batch.num_tokens, 3, 6), batch)


def test_a_transposed_weight_in_a_matrix_product() -> None:
    batch = batch_of(7, 1, 20)
    weight, bias = matrix(5, 6), vector(5)
    x = torch.randn(1, batch.num_tokens, 6)
    assert_shares(lambda x: x @ weight.T + bias, [weight, bias], x, batch)
    assert_shares(lambda x: torch.matmul(x, weight.t().type(torch.float32)), [weight], x, batch)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(3, 5), (64, 48)])  # the gradient itself; Gram matrices
def test_experts_that_several_sequences_share_and_one_that_none_uses(
    num_inputs: int, num_outputs: int, transposed: bool
) -> None:
    batch = batch_of(7, 1, 20)
    shape = (num_inputs, num_outputs) if transposed else (num_outputs, num_inputs)
    weight, bias = nn.Parameter(torch.randn(4, *shape)), nn.Parameter(torch.randn(4, num_outputs))
    experts = [range(0, 28, 2), range(28), [], [3, 7, 8]]  # the tokens of each, in order; sequences are 0:7, 7:8, 8:28
    token_S = torch.tensor([token for tokens in experts for token in tokens])
    routing = Routing(token_S, [len(tokens) for tokens in experts], batch.num_tokens)

    def mix(x: Tensor, bias_EO: Tensor | None) -> Tensor:
        outputs_SO = experts_linear(x[token_S], weight, bias_EO, routing, transposed=transposed)
        return torch.zeros(batch.num_tokens, num_outputs).index_add(0, token_S, outputs_SO)

    x = torch.randn(batch.num_tokens, num_inputs)
    assert_shares(lambda x: mix(x, bias), [weight, bias], x, batch, token_axis=0)
    assert_shares(lambda x: mix(x, None), [weight], x, batch, token_axis=0)


def test_layer_norm_weight_and_bias() -> None:
    batch = batch_of(7, 1, 20)
    weight, bias = vector(6), vector(6)
    x = torch.randn(1, batch.num_tokens, 6)
    assert_shares(lambda x: F.layer_norm(x, (6,), weight, bias, 1e-5), [weight, bias], x, batch)
    assert_shares(lambda x: F.layer_norm(x, (6,), weight, None, 1e-5), [weight], x, batch)
    assert_shares(lambda x: x + bias, [bias], x, batch)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_embedding_rows_are_summed_before_they_are_squared(padding_idx: int | None) -> None:
    batch = batch_of(7, 1, 20)
    table = matrix(5, 4)
    assert_shares(lambda ids: F.embedding(ids, table, padding_idx), [table], batch.input_ids_1N, batch)


def test_the_input_gradient_is_that_of_the_plain_operation() -> None:
    batch = batch_of(7, 2)
    weight, bias, scale = matrix(5, 6), vector(5), vector(5)
    x = torch.randn(1, batch.num_tokens, 6, requires_grad=True)
    gradient = torch.randn(1, batch.num_tokens, 5)
    (expected,) = torch.autograd.grad(F.linear(x, weight, bias) * scale, x, gradient)
    claims = dict.fromkeys([weight, bias, scale], Claim("any", ("parameter",), 1))
    with NormInterception(claims, NormContext(batch)):
        output = F.linear(x, weight, bias) * scale
    (measured,) = torch.autograd.grad(output, x, gradient)
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("num_features", [4, 300])  # the gradient itself; Gram matrices
@pytest.mark.parametrize(  # in one piece, in chunks; as many as a GPU's chunks need are slow on a CPU
    "num_tokens", [9, 384, 385, 1000, pytest.param(4097, marks=pytest.mark.slow)]
)
def test_head_loss_signals_and_shares(softcap: float | None, scale: float, num_features: int, num_tokens: int) -> None:
    completion = tuple(7 * index % 11 for index in range(num_tokens))
    sequences = [TokenSequence((1,), completion), TokenSequence((2, 3), (7, 7, 1), (True, False, True))]
    batch = pack(sequences, torch.get_default_device())
    weight, bias = matrix(11, num_features), vector(11)
    # logits of about one, as models have: large ones differ between libraries by more than their rounding
    hidden_MD = (torch.randn(len(batch.targets_M), num_features) * num_features**-0.5).requires_grad_()
    context = NormContext(batch)
    total, signals = head_loss(hidden_MD, Head(weight, bias, scale, softcap, True, True), context)
    measured = torch.autograd.grad(total, [hidden_MD, context.squared_norms_B])

    logits_MV = F.linear(hidden_MD, weight, bias) * scale
    logits_MV = logits_MV if softcap is None else softcap * torch.tanh(logits_MV / softcap)
    nll_M = F.cross_entropy(logits_MV, batch.targets_M, reduction="none")
    grads = [torch.autograd.grad(nll_M[rows].sum(), [weight, bias], retain_graph=True) for rows in batch.loss_slices]
    shares = [sum(g.double().square().sum().item() for g in pair) for pair in grads]
    torch.testing.assert_close(total, nll_M.sum())
    torch.testing.assert_close(signals.nll_M, nll_M)
    torch.testing.assert_close(signals.entropy_M, torch.distributions.Categorical(logits=logits_MV).entropy())
    torch.testing.assert_close(measured[0], torch.autograd.grad(nll_M.sum(), hidden_MD)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured[1], torch.tensor(shares, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 6, 9])
def test_a_few_rows_through_a_large_vocabulary_stay_exact_to_rounding(num_rows: int) -> None:
    logits_TV = 5 * torch.randn(num_rows, 49_152)
    gradient_TV = logits_TV.softmax(-1)
    gradient_TV[:, 0] -= 1
    weight_VD = torch.randn(49_152, 64) + 1
    expected = gradient_TV.double() @ weight_VD.double()
    error = (hidden_gradient(gradient_TV, weight_VD) - expected).norm() / expected.norm()
    assert error.item() <= 1e-5


def test_distinct_ids_are_counted_within_each_sequence() -> None:
    batch = batch_of(3, 2)
    distinct = DistinctIds(torch.tensor([4, 4, 1, 4, 1]), batch)
    assert distinct.sequence_U.tolist() == [0, 0, 1, 1]
    assert distinct.id_U.tolist() == [1, 4, 1, 4]
    assert distinct.sum_rows(torch.arange(5.0)[:, None]).flatten().tolist() == [2.0, 1.0, 4.0, 3.0]
    assert distinct.sum_sequences(torch.ones(4)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("num_rows", [1, 95, 96, 97, 300])
def test_the_inner_product_of_two_grams_needs_only_their_lower_blocks(num_rows: int) -> None:
    left, right = torch.randn(num_rows, 5), torch.randn(num_rows, 7)
    expected = ((left @ left.T).double() * (right @ right.T)).sum()
    product = inner_product_(gram_blocks(left), weighted_gram_blocks(right))
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-4)


def test_a_claimed_parameter_in_a_call_that_no_rule_knows_is_refused_by_name() -> None:
    weight = matrix(3, 3)
    interception = NormInterception({weight: Claim("linear", ("weight",), 1)}, NormContext(batch_of(2)))
    with interception, pytest.raises(UnclaimedCallError, match="einsum"):
        torch.einsum("bti,ij->btj", torch.ones(1, 2, 3), weight)


def test_a_claimed_parameter_that_is_used_twice_or_never_is_refused() -> None:
    weight = matrix(3, 3)
    interception = NormInterception({weight: Claim("linear", ("weight",), 1)}, NormContext(batch_of(2)))
    with pytest.raises(UnclaimedCallError, match="not used as in the trace"):
        interception.check_all_seen()
    with interception:
        F.linear(torch.ones(1, 2, 3), weight)
        with pytest.raises(UnclaimedCallError, match="differs from the one in the trace"):
            F.linear(torch.ones(1, 2, 3), weight)
