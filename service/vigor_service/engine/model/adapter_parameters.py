"""Which parameters a PEFT adapter trains. PEFT is asked: it knows every option of its configurations."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


def has_adapter(model: nn.Module) -> bool:
    """Return whether the model has a PEFT adapter."""
    return bool(getattr(model, "peft_config", None))


def adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that PEFT trains by the configuration of the active adapters.

    Which parameters require gradients at the time of the call does not matter.

    Raises:
        ValueError: the adapter is not in the model's layers, is outside PEFT's wrapper, disabled, or merged.
    """
    from peft import PeftModel, PeftType
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    if not isinstance(model, PeftModel):
        raise ValueError("the model's adapter is outside PEFT's wrapper: load it with peft.PeftModel.from_pretrained")
    tuner = model.base_model
    if not isinstance(tuner, BaseTuner):
        kinds = ", ".join(sorted({PeftType(config.peft_type).value for config in model.peft_config.values()}))
        raise ValueError(f"an adapter of type {kinds} is not in the model's layers and cannot be measured")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.disable_adapters or layer.merged for layer in layers):
        raise ValueError("the adapter is disabled or merged into its base, where it has no gradient")
    with _restoring_requires_grad(model):
        model.requires_grad_(False)
        tuner._mark_only_adapters_as_trainable(tuner.model)  # pyright: ignore - untyped; the biases, which set_adapter does not know
        tuner.set_adapter(tuner.active_adapter)
        return {parameter for parameter in model.parameters() if parameter.requires_grad}


@contextmanager
def _restoring_requires_grad(model: nn.Module) -> Generator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
