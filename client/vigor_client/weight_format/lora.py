"""Properties of a LoRA adapter that are not in its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch


def lora_scalings(model: torch.nn.Module) -> dict[str, float]:
    """Return the scaling factor of each of PEFT's LoRA layers, by the layer's name; empty without an adapter.

    Inactive adapters are ignored. If several are active, the name ends with the adapter's.
    ``lora_alpha`` and ``use_rslora`` affect the factor but no tensor: two models may have the same digest and differ in
    it.
    """
    found: dict[str, float] = {}
    for name, module in cast("Iterable[tuple[str, object]]", model.named_modules()):
        of_adapters: object = getattr(module, "scaling", None)
        if isinstance(of_adapters, dict):  # an attention layer has a ``scaling`` of its own, which is a number
            values = cast("dict[str, float]", of_adapters)
            names = cast("list[str]", getattr(module, "active_adapters", list(values)))
            active = [adapter for adapter in names if adapter in values]
            for adapter in active:
                found[name if len(active) == 1 else f"{name}.{adapter}"] = float(values[adapter])
    return found
