"""What a LoRA adapter has besides its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch


def lora_scalings(model: torch.nn.Module) -> dict[str, float]:
    """What each of PEFT's LoRA layers multiplies its product by, by the layer's name; empty without an adapter.

    An adapter that is not active counts for nothing. Where several are active, the name ends with the adapter's.
    ``lora_alpha`` and ``use_rslora`` are in there and in no tensor: two models may have one digest and differ in it.
    """
    found: dict[str, float] = {}
    for name, module in cast("Iterable[tuple[str, object]]", model.named_modules()):
        of_adapters: object = getattr(module, "scaling", None)
        if isinstance(of_adapters, dict):  # an attention layer's own is a number
            values = cast("dict[str, float]", of_adapters)
            names = cast("list[str]", getattr(module, "active_adapters", list(values)))
            active = [adapter for adapter in names if adapter in values]
            for adapter in active:
                found[name if len(active) == 1 else f"{name}.{adapter}"] = float(values[adapter])
    return found
