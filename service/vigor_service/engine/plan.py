"""Which rule measures which parameter of a model: found once, by tracing a small batch through it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.attention import UnsupportedAttentionError, attending_within, packed_attention
from vigor_service.engine.exact_norms import loss_logits
from vigor_service.engine.interception import Claim, Tracing
from vigor_service.engine.packing import PackedBatch, pack
from vigor_service.engine.rules.head import Head, logit_transform
from vigor_service.engine.sequences import TokenSequence

# How far packed logits may be from the model's own, relative to the largest logit: rounding, and nothing else.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class UnsupportedModelError(Exception):
    """The fast path does not understand this model; the message says what it met."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How each measured parameter of a model is measured."""

    decoder: nn.Module  # from ids to final hidden states
    head: Head
    tied_weight_VD: Tensor | None  # measured, and used by both embedding and head
    claims: Mapping[nn.Parameter, Claim]
    fallback: Mapping[str, nn.Parameter]  # left to autograd
    rules: Mapping[str, list[str]]  # rule -> names of its parameters, for people


def make_plan(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Plan:
    """Trace the model and let rules claim its parameters.

    Raises:
        UnsupportedModelError: the decoder, the head or the attention is not understood, or packed logits are not the
            model's own.
    """
    decoder = getattr(model, model.base_model_prefix, None)
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no decoder beside its head")
    head = _make_head(model, parameters)
    sequences = probe_sequences(model)
    batch = pack(sequences, model.device)
    tracing = Tracing(parameters, batch.num_tokens)
    try:
        with torch.no_grad(), packed_attention(model), attending_within(batch), tracing:
            hidden_ND = hidden_states(decoder, batch)
    except UnsupportedAttentionError as error:
        raise UnsupportedModelError(str(error)) from error
    _check_logits(model, sequences, head.logits(hidden_ND[batch.loss_rows_M]))
    return _assign(parameters, tracing, decoder, head)


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model  # pyright: ignore[reportReturnType] - PEFT's wrapper is untyped


def hidden_states(decoder: nn.Module, batch: PackedBatch) -> Tensor:
    """Return the final hidden states (N, D) of a packed batch."""
    output = decoder(input_ids=batch.input_ids_1N, position_ids=batch.position_ids_1N, use_cache=False)
    return output.last_hidden_state[0]


def probe_sequences(model: PreTrainedModel) -> list[TokenSequence]:
    """Return two short sequences of one prompt, whose token count equals no other size in the model's config.

    So the axis of the tokens can be told from that of heads or features.
    """
    config = model.config.get_text_config()
    sizes = set(_integers(config.to_dict()))
    num_tokens = next(count for count in range(11, 1000) if count not in sizes)
    ids = [(7919 * position + 13) % config.vocab_size for position in range(num_tokens)]
    prompt, rest = tuple(ids[:3]), ids[3:]
    return [TokenSequence(prompt, tuple(rest[:3])), TokenSequence(prompt, tuple(rest[3 : num_tokens - 4]))]


def _integers(value: Any) -> Iterator[int]:  # noqa: ANN401 - a config holds anything
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _integers(item)


def _make_head(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Head:
    module = model.get_output_embeddings()
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(f"the output head is a {type(module).__name__}, not a linear layer")
    measured = {id(parameter) for parameter in parameters.values()}
    scale, softcap = logit_transform(model.config.get_text_config())
    return Head(module.weight, module.bias, scale, softcap, id(module.weight) in measured, id(module.bias) in measured)


def _check_logits(model: PreTrainedModel, sequences: list[TokenSequence], logits_MV: Tensor) -> None:
    """Make sure that packing, positions, attention and head give what the model itself gives, one by one."""
    with torch.no_grad():
        own_MV = torch.cat([loss_logits(model, sequence) for sequence in sequences])
    error = ((own_MV - logits_MV).abs().max() / own_MV.abs().max()).item()
    if not error <= _TOLERANCES[model.dtype]:
        raise UnsupportedModelError(f"packed logits differ from the model's own by {error:.1e} of the largest")


def _assign(parameters: Mapping[str, nn.Parameter], tracing: Tracing, decoder: nn.Module, head: Head) -> Plan:
    claims = _claimable(tracing)
    head_names = {
        name for name, parameter in parameters.items() if parameter is head.weight_VD or parameter is head.bias_V
    }
    _check_head(head_names, claims, tracing)
    fallback = {
        name: parameter for name, parameter in parameters.items() if name not in claims and name not in head_names
    }
    tied = next((parameters[name] for name in head_names if name in claims), None)
    rules: defaultdict[str, list[str]] = defaultdict(list)
    for name in parameters:
        rules[_rule_name(name, claims, head_names)].append(name)
    return Plan(
        decoder=decoder,
        head=head,
        tied_weight_VD=tied,
        claims={parameters[name]: claim for name, claim in claims.items()},
        fallback=fallback,
        rules=rules,
    )


def _claimable(tracing: Tracing) -> dict[str, Claim]:
    """Return the claims whose parameters are used once, by that call, as is every other parameter of the call."""
    uses = Counter(name for claim in tracing.claims for name in claim.names)
    claims = {name: claim for claim in tracing.claims for name in claim.names}
    excluded = {name for name in claims if uses[name] > 1} | tracing.refusals.keys()
    while spreading := {name for name in claims if name not in excluded and excluded.intersection(claims[name].names)}:
        excluded |= spreading
    return {name: claim for name, claim in claims.items() if name not in excluded}


def _check_head(head_names: set[str], claims: Mapping[str, Claim], tracing: Tracing) -> None:
    """Make sure that the decoder uses the head's parameters not at all, or the weight as its embedding."""
    for name in head_names:
        used = name in tracing.refusals or any(name in claim.names for claim in tracing.claims)
        if used and (name not in claims or claims[name].rule != "embedding"):
            raise UnsupportedModelError(f"{name} is the head and has other uses than as an embedding")


def _rule_name(name: str, claims: Mapping[str, Claim], head_names: set[str]) -> str:
    if name in head_names:
        return "tied embedding and head" if name in claims else "head"
    return claims[name].rule if name in claims else "autograd"
