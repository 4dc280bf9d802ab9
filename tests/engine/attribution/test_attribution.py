"""Shares of positions equal those of a model with one copy of every parameter for each position."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, sqrt

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.engine.cases import difficult_sequences, on_device
from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.attribution.attribution import Attribution, attribute
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.out_of_memory import NoMemoryLeftError
from vigor_service.engine.model.parameter_selection import in_parts, measured_parameters
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import TokenSequence

# Each kind of layer: linear ones and experts, heads, norms, sinks, scans, several inputs of an embedding.
QUICK = {"qwen2", "qwen2-tied", "gpt2", "gemma2", "cohere", "opt", "deepseek_v3", "gpt_oss", "falcon", "bloom", "mamba"}
SCORED = [sequence for sequence in difficult_sequences() if sequence.num_loss_tokens]
MASKED = TokenSequence((7, 8, 9), (10, 11, 9, 13, 8), (True, False, True, True, False))
# With 4 heads of queries and 2 of keys: as many tokens as heads.
AS_MANY_TOKENS_AS_HEADS = [TokenSequence((7, 8), (9, 7)), TokenSequence((7,), (8,))]


def attributed(model: nn.Module, sequence: TokenSequence, selection: str | None = None) -> Attribution:
    return attribute(model, sequence, [measured_parameters(model, selection)])  # pyright: ignore[reportArgumentType] - a PEFT model serves too


def total(attribution: Attribution) -> float:
    return sum(attribution.position_shares) + attribution.unresolved_share


# ---------------------------------------------------------------- a model with a parameter for each position


class LinearByPosition(nn.Module):
    def __init__(self, module: nn.Linear, num_positions: int) -> None:
        super().__init__()
        self.weight_LOI = copies(module.weight, num_positions)
        self.bias_LO = None if module.bias is None else copies(module.bias, num_positions)

    def forward(self, x_1LI: Tensor) -> Tensor:
        output = torch.einsum("bli,loi->blo", x_1LI, self.weight_LOI)
        return output if self.bias_LO is None else output + self.bias_LO


class EmbeddingByPosition(nn.Module):
    def __init__(self, module: nn.Embedding, num_positions: int) -> None:
        super().__init__()
        self.weight_LVD = copies(module.weight, num_positions)
        self.padding_idx = module.padding_idx

    def forward(self, ids_1L: Tensor) -> Tensor:
        rows = zip(ids_1L[0], self.weight_LVD, strict=True)
        return torch.cat([F.embedding(token, table, self.padding_idx)[None] for token, table in rows])[None]


class NormByPosition(nn.Module):
    def __init__(self, module: nn.Module, num_positions: int) -> None:
        super().__init__()
        self.weight_LD = copies(module.get_parameter("weight"), num_positions)
        self.eps: float = module.variance_epsilon  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x_1LxD: Tensor) -> Tensor:
        weight = self.weight_LD if x_1LxD.dim() == 3 else self.weight_LD[:, None]
        return weight * (x_1LxD * (x_1LxD.square().mean(-1, keepdim=True) + self.eps).rsqrt())


def copies(parameter: Tensor, num_positions: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().expand(num_positions, *parameter.shape).clone())


def split_by_position(model: nn.Module, num_positions: int) -> dict[str, nn.Parameter]:
    """Give every position parameters of its own; return them under the names of the modules that had them."""
    split: dict[str, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        kind = (
            LinearByPosition
            if isinstance(module, nn.Linear)
            else EmbeddingByPosition
            if isinstance(module, nn.Embedding)
            else NormByPosition
            if "RMSNorm" in type(module).__name__
            else None
        )
        if kind is not None:
            own = kind(module, num_positions)  # pyright: ignore[reportArgumentType] - each takes its own kind
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, own)
            split |= {f"{name}.{part.rpartition('_')[0]}": value for part, value in own.named_parameters()}
    return split


def reference_shares(model: PreTrainedModel, sequence: TokenSequence, tied: Mapping[str, str]) -> list[float]:
    """``⟨g_t, g⟩ / ‖g‖²``; ``tied`` names the parameters that are others, whose gradients are theirs too."""
    split = split_by_position(model, sequence.num_tokens)
    logits_LV = model(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).logits[0]
    loss = F.cross_entropy(logits_LV[sequence.loss_positions()], torch.tensor(sequence.loss_targets()))
    gradients = dict(zip(split, torch.autograd.grad(loss, list(split.values())), strict=True))
    for name, owner in tied.items():
        gradients[owner] = gradients[owner] + gradients.pop(name)
    products_L = torch.stack([(own * own.sum(0)).double().flatten(1).sum(-1) for own in gradients.values()]).sum(0)
    return (products_L / products_L.sum()).tolist()


@pytest.mark.parametrize("sequence", [*SCORED, MASKED, *AS_MANY_TOKENS_AS_HEADS], ids=lambda item: str(item.num_tokens))
@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("qwen2", {}),
        ("qwen2-tied", {"lm_head.weight": "model.embed_tokens.weight"}),
        ("qwen3", {"lm_head.weight": "model.embed_tokens.weight"}),
    ],
)
def test_shares_of_positions_are_those_of_copies_of_the_parameters(
    family: str, tied: dict[str, str], sequence: TokenSequence
) -> None:
    shares = attributed(tiny_model(family), sequence).position_shares
    expected = reference_shares(tiny_model(family), sequence, tied)
    assert shares == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_shares_sum_to_one_and_the_norm_is_the_reference(family: str, device: torch.device) -> None:
    model = on_device(tiny_model(family), device)
    for sequence in (SCORED[2], MASKED):
        attribution = attributed(model, sequence)
        assert total(attribution) == pytest.approx(1, abs=1e-5)
        assert sum(attribution.parameter_shares.values()) == pytest.approx(1, abs=1e-5)
        expected = exact_score(model, sequence, measured_parameters(model))
        assert attribution.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert attribution.scaled_grad_norm == pytest.approx(expected.scaled_grad_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "unresolved"),
    [
        ("llama", set[str]()),
        ("gpt2", set[str]()),
        ("mixtral", {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("gpt_oss", {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.experts.gate_up_proj_bias",
                     "mlp.experts.down_proj_bias", "self_attn.sinks"}),
        ("mamba", {"mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.dt_proj.weight", "mixer.dt_proj.bias",
                   "mixer.A_log", "mixer.D"}),
    ],
)  # fmt: skip
def test_what_has_no_positions_is_not_given_one(family: str, unresolved: set[str]) -> None:
    attribution = attributed(tiny_model(family), SCORED[0])
    assert {".".join(name.split(".")[3:]) for name in attribution.unresolved} == unresolved
    share = sum(attribution.parameter_shares[name] for name in attribution.unresolved)
    assert attribution.unresolved_share == pytest.approx(share)
    assert (share > 1e-3) is bool(unresolved)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granitemoe"])
def test_in_sixteen_bits_shares_are_within_its_rounding(family: str) -> None:
    for sequence in (SCORED[2], MASKED):
        shares = attributed(tiny_model(family), sequence).position_shares
        in_bfloat16 = attributed(tiny_model(family, dtype=torch.bfloat16), sequence)
        assert total(in_bfloat16) == pytest.approx(1, abs=2e-2)
        assert in_bfloat16.position_shares == pytest.approx(shares, abs=5e-2)


def test_in_float64_nothing_is_rounded_to_float32() -> None:
    assert total(attributed(tiny_model(dtype=torch.float64), SCORED[2])) == pytest.approx(1, abs=1e-13)


# --------------------------------------------------------------------------------------------- selections


@pytest.mark.parametrize("selection", ["norms", "last-1-layers", r"q_proj\.weight", r"embed_tokens"])
def test_only_selected_parameters_have_shares(selection: str) -> None:
    model = tiny_model("qwen2-tied")
    attribution = attributed(model, SCORED[0], selection)
    assert list(attribution.parameter_shares) == list(measured_parameters(model, selection))
    assert total(attribution) == pytest.approx(1, abs=1e-5)


def test_an_adapter_has_all_shares_of_its_model() -> None:
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_model("llama"), config)  # pyright: ignore[reportArgumentType]
    attribution = attributed(model, SCORED[0])
    assert all("lora_" in name for name in attribution.parameter_shares)
    assert attribution.unresolved == []
    assert total(attribution) == pytest.approx(1, abs=1e-5)
    assert set(attribution.module_labels.values()) == {"layer 0", "layer 1"}


def test_parts_of_the_parameters_give_what_all_of_them_give() -> None:
    model = tiny_model("gemma2")
    parameters = measured_parameters(model)
    together = attribute(model, MASKED, in_parts(parameters))
    apart = attribute(model, MASKED, [{name: parameter} for name, parameter in parameters.items()])
    assert apart.position_shares == pytest.approx(together.position_shares, abs=1e-6)
    assert apart.parameter_shares == pytest.approx(together.parameter_shares, abs=1e-6)


# ------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("family", "module_labels"),
    [
        ("qwen2", ["embedding", "layer 0", "layer 1", "model.norm", "head"]),
        ("qwen2-tied", ["embedding and head", "layer 0", "layer 1", "model.norm"]),
        ("gpt2", ["embedding and head", "transformer.wpe", "layer 0", "layer 1", "transformer.ln_f"]),
    ],
)
def test_parameters_stand_in_layers_or_beside_them(family: str, module_labels: list[str]) -> None:
    attribution = attributed(tiny_model(family), SCORED[0])
    assert (
        list(dict.fromkeys(attribution.module_labels[name] for name in attribution.parameter_shares)) == module_labels
    )


# ------------------------------------------------------------------------------------------------- edges


def test_the_last_token_and_what_comes_after_the_last_loss_token_have_no_share() -> None:
    shares = attributed(tiny_model(), MASKED).position_shares
    assert shares[-2:] == [0, 0]  # a masked last token, and the position before it, which predicts it
    assert all(share != 0 for share in shares[:-2])


def test_a_position_that_works_against_the_others_has_a_negative_share() -> None:
    model = tiny_model()
    repeated = (5,) * 6
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(3)  # surer of what it predicts
        likeliest = int(model(input_ids=torch.tensor([repeated])).logits[0, -1].argmax())
    shares = attributed(model, TokenSequence((5,), (*repeated[1:], likeliest)), "lm_head").position_shares
    assert [share < 0 for share in shares] == [False] * 5 + [True, False]  # all others make it less likely


def test_nothing_is_attributed_where_nothing_counts() -> None:
    with pytest.raises(ValueError, match="no token counts"):
        attributed(tiny_model(), TokenSequence((1, 2), (3,), (False,)))


def test_a_norm_that_is_not_finite_has_no_shares() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(torch.nan)
    attribution = attributed(model, MASKED)
    assert isnan(attribution.grad_norm)
    assert all(map(isnan, [*attribution.position_shares, *attribution.parameter_shares.values()]))


def test_the_model_is_left_as_it_was_and_scores_as_before() -> None:
    engine = Engine(tiny_model("qwen3"), name="tiny", method="rules")
    before = engine.score([MASKED]).scores[0].grad_norm
    attribution = engine.attribute(MASKED)
    after = engine.score([MASKED]).scores[0].grad_norm
    assert attribution.grad_norm == pytest.approx(before, rel=1e-5)
    assert attribution.scaled_grad_norm == pytest.approx(before * sqrt(3), rel=1e-5)
    assert after == before


def test_where_memory_runs_out_it_says_so_and_the_model_is_as_before() -> None:
    model = tiny_model()
    engine = Engine(model, name="tiny")

    def run_out(*_: object) -> None:
        raise MemoryError

    hook = model.register_forward_hook(run_out)
    with pytest.raises(NoMemoryLeftError, match="no memory to attribute 8 tokens"):
        engine.attribute(MASKED)
    hook.remove()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert total(engine.attribute(MASKED)) == pytest.approx(1, abs=1e-5)
