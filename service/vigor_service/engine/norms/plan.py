"""The plan of which rule measures which parameter of a model, found once by tracing a small batch through the model."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.batching.shared_prefixes import MIN_TOKENS
from vigor_service.engine.memory.out_of_memory import is_out_of_memory
from vigor_service.engine.model.attention_span import UnsupportedAttentionError
from vigor_service.engine.model.decoder import Decoder, Layout
from vigor_service.engine.model.experts import UnsupportedExpertsError
from vigor_service.engine.model.fused_rms_norm import usual_rms_norms
from vigor_service.engine.model.rotary import length_dependent
from vigor_service.engine.model.unwrap import text_config
from vigor_service.engine.norms.op_interception import Claim, Tracing
from vigor_service.engine.norms.reference import loss_logits
from vigor_service.engine.rules.head import Head, logit_transforms
from vigor_service.engine.sequences import TokenSequence

logger = logging.getLogger(__name__)

# How far logits may be from the model's own, relative to the largest logit: by rounding errors only.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
LAYOUTS: tuple[Layout, ...] = ("packed", "single")  # the faster one first
_PROMPT_TOKENS = MIN_TOKENS + 1  # tokens of a prompt whose rows are shared


class UnsupportedModelError(Exception):
    """The fast path does not support this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How each measured parameter of a model is measured."""

    decoder: Decoder
    head: Head
    tied_weight_VD: Tensor | None  # measured, and used by both embedding and head
    claims: Mapping[nn.Parameter, Claim]
    fallback: Mapping[str, nn.Parameter]  # left to autograd
    untouched: Mapping[str, nn.Parameter]  # not used in the trace: their gradient is zero
    rules: Mapping[str, list[str]]  # rule -> names of its parameters, for display

    @property
    def one_at_a_time(self) -> bool:
        """Whether a batch must hold one sequence: autograd sums a parameter's gradient over all sequences in it."""
        return self.decoder.layout == "single" or bool(self.fallback)


def make_plan(
    model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], layouts: Sequence[Layout] = LAYOUTS
) -> Plan:
    """Trace the model and return the plan of its parameters, in the first of the layouts that supports the model.

    The log says why a layout does not.

    Raises:
        UnsupportedModelError: no layout supports the decoder, the head and the experts and gives the model's own
            logits.
    """
    refusal = UnsupportedModelError(f"{type(model).__name__} has no decoder beside its head")
    for layout in layouts:
        for module in _decoders(model):
            try:
                return _make_plan(model, module, parameters, layout)
            except UnsupportedModelError as error:
                logger.info("%s layout: %s", layout, error)
                refusal = error
    raise refusal


def _decoders(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that may be the decoder, the text decoder of an image-text model first."""
    found: list[object] = [
        model.get_decoder(),
        getattr(model, model.base_model_prefix, None),
        getattr(model, "model", None),
    ]
    modules = [module for module in found if isinstance(module, nn.Module) and module is not model]
    return list(dict.fromkeys(modules))


def _make_plan(
    model: PreTrainedModel, module: nn.Module, parameters: Mapping[str, nn.Parameter], layout: Layout
) -> Plan:
    decoder = _make_decoder(model, module, layout)
    plain_head = _make_head(model, parameters)
    sequences = self_check_sequences(model) if layout == "packed" else [_single_sequence(model)]
    batch = decoder.pack(sequences)
    tracing = Tracing(parameters, batch.num_tokens)
    try:
        hidden_ND = _trace(decoder, batch, tracing)
    except (UnsupportedAttentionError, UnsupportedExpertsError) as error:
        raise UnsupportedModelError(str(error)) from error
    except UnsupportedModelError:
        raise
    except Exception as error:  # a model's own code may raise anything where it is not run as it was written for
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(f"{type(error).__name__}: {error}") from error
    head = _with_own_logits(model, plain_head, sequences, hidden_ND[batch.loss_rows_M])
    return _assign(parameters, tracing, decoder, head)


def _make_decoder(model: PreTrainedModel, module: nn.Module, layout: Layout) -> Decoder:
    if layout == "packed" and not (isinstance(module, PreTrainedModel) and module._can_set_attn_implementation()):  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedModelError(
            f"{type(module).__name__} does not attend through transformers' attention interface"
        )
    norms = usual_rms_norms(module) if model.device.type == "cuda" else {}  # on a CPU the fused one is no faster
    return Decoder(model, module, layout, norms, length_dependent(module))


def _trace(decoder: Decoder, batch: PackedBatch, tracing: Tracing) -> Tensor:
    """Run the decoder under the trace, check that its sequences are independent, and return its hidden states."""
    embedded: list[Tensor] = []

    def require_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which some models scale in place

    hook = decoder.model.get_input_embeddings().register_forward_hook(require_gradient)
    try:
        with torch.enable_grad(), decoder.prepared(), decoder.given(batch):
            with tracing:
                hidden_ND = decoder.hidden_states(batch)
            if batch.num_sequences > 1:
                _check_independence(hidden_ND, embedded[0], batch)
    finally:
        hook.remove()
    return hidden_ND.detach()


def _check_independence(hidden_ND: Tensor, embedded_1ND: Tensor, batch: PackedBatch) -> None:
    """Check that no operation mixes tokens of different sequences: such gradients are exactly zero, in any dtype.

    Logits alone would not show a small leak in 16 bits.
    """
    for rows in batch.token_slices:
        own_TD = hidden_ND[rows]
        direction_TD = torch.linspace(-1, 1, own_TD.numel(), dtype=own_TD.dtype, device=own_TD.device).view_as(own_TD)
        (gradient_1ND,) = torch.autograd.grad(own_TD, embedded_1ND, direction_TD, retain_graph=True)
        gradient_1ND[:, rows] = 0
        if gradient_1ND.count_nonzero():
            raise UnsupportedModelError("tokens of one packed sequence reach another")


def self_check_sequences(model: PreTrainedModel) -> list[TokenSequence]:
    """Return two short sequences of one prompt, whose packed token count equals no size in the model's config.

    So the size of the token axis differs from the sizes of the axes of heads and features.
    """
    ids = self_check_ids(model)
    prompt, rest = tuple(ids[:_PROMPT_TOKENS]), tuple(ids[_PROMPT_TOKENS:])
    num_second = len(ids) - 2 * _PROMPT_TOKENS - 1  # the last token of each is not packed
    return [TokenSequence(prompt, rest[:3]), TokenSequence(prompt, rest[3 : 3 + num_second])]


def _single_sequence(model: PreTrainedModel) -> TokenSequence:
    """Return one sequence with the same token count, all of which the single layout keeps."""
    ids = self_check_ids(model)
    return TokenSequence(tuple(ids[:_PROMPT_TOKENS]), tuple(ids[_PROMPT_TOKENS:]))


def self_check_ids(model: PreTrainedModel, num_tokens: int | None = None) -> list[int]:
    """Return the first ``num_tokens`` ids of a fixed series; None: a number that equals no size in the config."""
    config = text_config(model.config)
    sizes = set(_integers(config.to_dict()))
    if num_tokens is None:
        num_tokens = next(count for count in range(2 * _PROMPT_TOKENS + 9, 1000) if count not in sizes)
    return [(7919 * position + 13) % config.vocab_size for position in range(num_tokens)]


def _integers(value: Any) -> Iterator[int]:  # noqa: ANN401 - a config holds anything
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        for item in cast("dict[str, object]", value).values():
            yield from _integers(item)


def _make_head(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Head:
    module = _own_or_trained(model.get_output_embeddings())
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(f"the output head is a {type(module).__name__}, not a linear layer")
    measured = {id(parameter) for parameter in parameters.values()}
    return Head(module.weight, module.bias, 1.0, None, id(module.weight) in measured, id(module.bias) in measured)


def _own_or_trained(module: Any) -> Any:  # noqa: ANN401 - PEFT's wrapper is untyped
    """Return the copy of a module that PEFT trains in its place (``modules_to_save``), or the module itself."""
    copies = getattr(module, "modules_to_save", None)
    if not copies:
        return module
    active = [name for name in module.active_adapters if name in copies]
    return copies[active[0]] if active else module.original_module


def _with_own_logits(model: PreTrainedModel, head: Head, sequences: Sequence[TokenSequence], hidden_MD: Tensor) -> Head:
    """Return the head with the scale and the cap that give the model's own logits, computed for one sequence at a time.

    Equal logits show that layout, positions, attention and head are those of the model.
    """
    with torch.no_grad():
        own_MV = torch.cat([loss_logits(model, sequence).float() for sequence in sequences])
    errors: list[float] = []
    for scale, softcap in logit_transforms(text_config(model.config)):
        candidate = replace(head, scale=scale, softcap=softcap)
        errors.append(_largest_difference(own_MV, candidate.logits(hidden_MD)))
        if errors[-1] <= _TOLERANCES[model.dtype]:
            return candidate
    raise UnsupportedModelError(f"the logits differ from the model's own by {errors[0]:.1e} of the largest")


def _largest_difference(own_MV: Tensor, logits_MV: Tensor) -> float:
    """Return the largest difference relative to the largest finite logit; infinity if other entries are finite."""
    finite_MV = own_MV.isfinite()
    if not torch.equal(finite_MV, logits_MV.isfinite()):
        return inf
    own_F, logits_F = own_MV[finite_MV], logits_MV[finite_MV]
    return ((own_F - logits_F).abs().max() / own_F.abs().max()).item()


def _assign(parameters: Mapping[str, nn.Parameter], tracing: Tracing, decoder: Decoder, head: Head) -> Plan:
    claims = _claimable(tracing)
    head_names = {
        name for name, parameter in parameters.items() if parameter is head.weight_VD or parameter is head.bias_V
    }
    _check_head(head_names, claims, tracing)
    others = {name: parameter for name, parameter in parameters.items() if name not in {*claims, *head_names}}
    touched = tracing.refusals.keys() | {name for claim in tracing.claims for name in claim.names}
    fallback = {name: parameter for name, parameter in others.items() if name in touched}
    tied = next((parameters[name] for name in head_names if name in claims), None)
    rules: defaultdict[str, list[str]] = defaultdict(list)
    for name in parameters:
        rules[_rule_name(name, claims, head_names, fallback)].append(name)
    return Plan(
        decoder=decoder,
        head=head,
        tied_weight_VD=tied,
        claims={parameters[name]: claim for name, claim in claims.items()},
        fallback=fallback,
        untouched={name: parameter for name, parameter in others.items() if name not in touched},
        rules=rules,
    )


def _claimable(tracing: Tracing) -> dict[str, Claim]:
    """Return parameter name -> claim for the calls whose parameters are all used once, by that call."""
    uses = Counter(name for claim in tracing.claims for name in claim.names)
    claims = {name: claim for claim in tracing.claims for name in claim.names}
    excluded = {name for name in claims if uses[name] > 1} | tracing.refusals.keys()
    while spreading := {name for name in claims if name not in excluded and excluded.intersection(claims[name].names)}:
        excluded |= spreading
    return {name: claim for name, claim in claims.items() if name not in excluded}


def _check_head(head_names: set[str], claims: Mapping[str, Claim], tracing: Tracing) -> None:
    """Check that the decoder does not use the head's parameters, except for the weight as its embedding."""
    for name in head_names:
        used = name in tracing.refusals or any(name in claim.names for claim in tracing.claims)
        if used and (name not in claims or claims[name].rule != "embedding"):
            raise UnsupportedModelError(f"{name} is the head and has other uses than as an embedding")


def _rule_name(name: str, claims: Mapping[str, Claim], head_names: set[str], fallback: Mapping[str, object]) -> str:
    if name in head_names:
        return "tied embedding and head" if name in claims else "head"
    if name in claims:
        return claims[name].rule
    return "autograd" if name in fallback else "unused"
