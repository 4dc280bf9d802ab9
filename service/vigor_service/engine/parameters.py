"""Which parameters θ the norm is taken over."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn


def measured_parameters(model: nn.Module, selection: str | None = None) -> dict[str, nn.Parameter]:
    """Return name -> parameter for the selected parameters, each tied parameter once, under its first name.

    ``selection`` is ``"all"``, ``"lora"``, a regular expression searched in parameter names, or None: the LoRA
    parameters if there are any, else all, as the reference implementation does.

    Raises:
        ValueError: the selection is no regular expression, or selects no parameter.
    """
    named = dict(model.named_parameters())
    is_selected = _predicate(selection, named)
    selected = {name: parameter for name, parameter in named.items() if is_selected(name)}
    if not selected:
        raise ValueError(f"parameters={selection!r} selects none of the model's {len(named)} parameters")
    return selected


def _predicate(selection: str | None, names: dict[str, nn.Parameter]) -> Callable[[str], bool]:
    if selection is None:
        selection = "lora" if any(map(_is_lora, names)) else "all"
    if selection == "all":
        return lambda _: True
    if selection == "lora":
        return _is_lora
    try:
        pattern = re.compile(selection)
    except re.error as error:
        raise ValueError(
            f"parameters={selection!r} is neither 'all', 'lora' nor a regular expression: {error}"
        ) from error
    return lambda name: pattern.search(name) is not None


def _is_lora(name: str) -> bool:
    return "lora_" in name
