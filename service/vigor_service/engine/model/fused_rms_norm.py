"""RMSNorm by torch's fused kernel, for modules of the usual kind: on a CUDA device two launches instead of nine.

The usual kind is Llama's: ``weight * (x / sqrt(mean(x²) + eps))``, normalised in float32. Whether a module is usual is
found by running it on random numbers, not by its name alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vigor_service.engine.ops.dtypes import KERNEL_DTYPES
from vigor_service.engine.ops.forwards import running_forwards

_MOST_ROUNDINGS = 8  # that float32 results may differ by: two orders of summation, two roundings
_EQUAL_SHARE = 0.98  # of 16-bit results that must be equal


def usual_rms_norms(model: nn.Module) -> dict[nn.Module, float]:
    """Return the model's usual RMSNorm modules, each with its epsilon."""
    named = (module for module in model.modules() if type(module).__name__.endswith("RMSNorm"))
    found = ((module, _epsilon(module)) for module in named)
    return {module: epsilon for module, epsilon in found if epsilon is not None and _is_usual(module, epsilon)}


def fused(norms: Mapping[nn.Module, float]) -> AbstractContextManager[None]:
    """Let these modules run by the fused kernel, and restore their own forwards afterwards."""
    forwards = {module: partial(_run, module, module.forward, epsilon) for module, epsilon in norms.items()}
    return running_forwards(forwards)


def _run(
    module: nn.Module,
    forward: Callable[..., Tensor],
    epsilon: float,
    x: Tensor,
    *others: object,  # for example a gate
    **options: object,
) -> Tensor:
    if others or options:
        return forward(x, *others, **options)
    return _fused(x, module.get_parameter("weight"), epsilon)


def _fused(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    return weight_D * F.rms_norm(x, weight_D.shape, None, epsilon)


def _epsilon(module: nn.Module) -> float | None:
    """Return the epsilon of a module; None unless its one parameter is a weight vector and its forward its class's."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    parameters = dict(module.named_parameters())
    is_plain = list(parameters) == ["weight"] and parameters["weight"].dim() == 1 and "forward" not in vars(module)
    return epsilon if is_plain and isinstance(epsilon, float) and parameters["weight"].dtype in KERNEL_DTYPES else None


def _is_usual(module: nn.Module, epsilon: float) -> bool:
    """Return whether the module gives the same as the fused kernel for random rows and weights."""
    weight_D = module.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    x_TD, other_D = (torch.randn(*shape, len(weight_D), generator=generator).to(weight_D) for shape in ((64,), ()))
    with torch.no_grad():
        try:
            own = functional_call(module, {"weight": other_D}, (x_TD,))
        except TypeError:
            return False  # it needs other arguments than rows
        return isinstance(own, Tensor) and _are_alike(own, _fused(x_TD, other_D, epsilon))


def _are_alike(own_TD: Tensor, fused_TD: Tensor) -> bool:
    """Return whether the numbers are equal up to the order of a sum, which changes very few of them in 16 bits.

    A module that multiplies before it rounds differs in every fourth 16-bit number.
    """
    if own_TD.dtype != fused_TD.dtype:
        return False
    if own_TD.dtype == torch.float32:
        return torch.allclose(own_TD, fused_TD, rtol=_MOST_ROUNDINGS * torch.finfo(torch.float32).eps, atol=0)
    return (own_TD == fused_TD).double().mean().item() >= _EQUAL_SHARE
