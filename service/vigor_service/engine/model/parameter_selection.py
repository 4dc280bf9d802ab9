"""Which parameters θ the norm is taken over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from vigor_service.engine.model.adapter_parameters import adapter_parameters, has_adapter
from vigor_service.engine.model.decoder import decoder_layers
from vigor_service.engine.model.text_parameters import unreached_by_text
from vigor_service.engine.model.unwrap import causal_model, text_config

_ELEMENTS_AT_ONCE = 2**28  # the most that a part has, unless it is a single parameter
_LAST_LAYERS = re.compile(r"last-(\d+)-layers")
_WORDS = "'all', 'lora', 'norms', 'last-K-layers'"


def measured_parameters(model: nn.Module, selection: str | None = None) -> dict[str, nn.Parameter]:
    """Return name -> parameter for the selected parameters, each tied parameter once, under its first name.

    ``selection`` is one of

    - ``"all"``;
    - ``"lora"``: what PEFT trains under the configuration of the active adapter: LoRA matrices, DoRA magnitudes, the
      modules of ``modules_to_save``, rows of ``trainable_token_indices``, and the biases that ``bias`` names. Without
      PEFT: the parameters with ``lora_`` in their names;
    - ``"norms"``: the parameters of modules whose class has "norm" in its name, such as LayerNorm or Qwen2RMSNorm;
    - ``"last-K-layers"``, for example ``"last-4-layers"``: the parameters of the last K decoder layers and of the
      modules that run after them (final norm, head), without parameters that are also used before them. A head that is
      tied to the input embedding is left out, because its gradient would have to flow through all layers;
    - a regular expression searched in parameter names;
    - None: ``"lora"`` if there is an adapter, else ``"all"``, as the reference implementation does, without the
      parameters that a pass over text does not reach (see ``text_parameters.py``).

    Raises:
        ValueError: the selection is none of these, selects no parameter, K is not between 1 and the number of
            layers, or the adapter's parameters have no gradient: it is disabled, merged or of another kind.
    """
    named = dict(model.named_parameters())
    is_selected = _predicate(model, selection, named)
    selected = {name: parameter for name, parameter in named.items() if is_selected(name)}
    if not selected:
        raise ValueError(f"parameters={selection!r} selects none of the model's {len(named)} parameters")
    return selected


def in_parts(parameters: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """Split the parameters, in order, into parts whose gradients may be in memory at once."""
    parts: list[dict[str, nn.Parameter]] = []
    room = 0
    for name, parameter in parameters.items():
        if parameter.numel() > room:
            parts.append({})
            room = max(_ELEMENTS_AT_ONCE, parameter.numel())
        parts[-1][name] = parameter
        room -= parameter.numel()
    return parts


def _predicate(model: nn.Module, selection: str | None, named: dict[str, nn.Parameter]) -> Callable[[str], bool]:
    if selection is None:
        if not has_adapter(model) and not any("lora_" in name for name in named):
            unreached = unreached_by_text(causal_model(model))
            return lambda name: named[name] not in unreached
        selection = "lora"
    if selection == "all":
        return lambda _: True
    if selection == "lora":
        return _is_one_of(adapter_parameters(model), named) if has_adapter(model) else lambda name: "lora_" in name
    if selection == "norms":
        return _is_one_of(_norm_parameters(model), named)
    if match := _LAST_LAYERS.fullmatch(selection):
        return _is_one_of(_last_parameters(model, int(match[1])), named)
    try:
        pattern = re.compile(selection)
    except re.error as error:
        raise ValueError(f"parameters={selection!r} is neither {_WORDS} nor a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


def _is_one_of(parameters: set[nn.Parameter], named: dict[str, nn.Parameter]) -> Callable[[str], bool]:
    return lambda name: named[name] in parameters


def _norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def _last_parameters(model: nn.Module, count: int) -> set[nn.Parameter]:
    """Return the parameters of the last ``count`` layers and of what runs later, less those of what runs earlier."""
    layers = decoder_layers(causal_model(model))
    if layers is None:
        num_layers = getattr(text_config(causal_model(model).config), "num_hidden_layers", None)
        raise ValueError(
            f"{type(model).__name__} has no list of {num_layers} layers, so that 'last-K-layers' says nothing"
        )
    if not 1 <= count <= len(layers):
        raise ValueError(f"parameters='last-{count}-layers': the model has {len(layers)} layers, K is from 1 to that")
    order = _run_order(model)
    earlier, later = order[: order.index(layers[-count])], order[order.index(layers[-1]) :]
    before = {parameter for module in [*earlier, *layers[:-count]] for parameter in _used_by(module, layers)}
    behind = {parameter for module in [*later, *layers[-count:]] for parameter in _used_by(module, layers)}
    return behind - before


def _used_by(module: nn.Module, layers: nn.ModuleList) -> list[nn.Parameter]:
    """Return all parameters of a decoder layer; for any other module, only those that are not a submodule's."""
    return list(module.parameters(recurse=any(module is layer for layer in layers)))


def _run_order(model: nn.Module) -> list[nn.Module]:
    """Return the modules in the order in which the forward pass of one token starts them."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _inputs: order.append(module)) for module in model.modules()
    ]
    try:
        with torch.no_grad():
            device = causal_model(model).device
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return order
