"""The yardstick: a loop over sequences in float64, by autograd alone. It knows nothing of the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SHORTER = (torch.float32, torch.float16, torch.bfloat16)
_MASKED = -1e30  # what masks add: no choice


@dataclass(frozen=True, slots=True)
class Expected:
    """What a sequence's score should be, and how near a tie the closest choice among experts or keys was."""

    grad_norm: float
    mean_logprob: float
    closest_choice: float  # relative difference of the last that was taken and the first that was not


def expected_score(model: nn.Module, token_ids: Sequence[int], loss_positions: Sequence[int]) -> Expected:
    """Score one sequence in float64: the mean over ``loss_positions`` of log p(next token), and its gradient's norm.

    ``model`` stays as it is, and what it was asked before does not matter: some models keep state between calls (rotary
    positions that grow), so every sequence has a fresh copy.
    """
    own = copy.deepcopy(model).double()
    _without_grouped_products(own)
    with _everything_in_double() as mode:
        grad_norm, mean_logprob = _norm_and_logprob(own, token_ids, loss_positions)
    return Expected(grad_norm, mean_logprob, mode.closest_choice)


def rounding_of_float32(
    model: nn.Module, token_ids: Sequence[int], loss_positions: Sequence[int], expected: Expected
) -> float:
    """Return how far the norm of the same loop in float32 is from the expected one, relative."""
    grad_norm, _ = _norm_and_logprob(copy.deepcopy(model), token_ids, loss_positions)
    return abs(grad_norm / expected.grad_norm - 1)


def _norm_and_logprob(model: nn.Module, token_ids: Sequence[int], loss_positions: Sequence[int]) -> tuple[float, float]:
    model.eval().requires_grad_(True)
    with torch.enable_grad():
        logits_TV = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        rows = torch.tensor(list(loss_positions))
        targets = torch.tensor([token_ids[position + 1] for position in loss_positions])
        logprobs_T = logits_TV[rows].double().log_softmax(-1)[torch.arange(len(rows)), targets]
        gradients = torch.autograd.grad(logprobs_T.mean(), list(model.parameters()), allow_unused=True)
    squares = [gradient.double().square().sum().item() for gradient in gradients if gradient is not None]
    return sqrt(sum(squares)), logprobs_T.mean().item()


@contextmanager
def _everything_in_double() -> Iterator[_InDouble]:
    """Let new tensors be float64 as well as what models turn to float32 on the way (norms, routers, logits)."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _InDouble() as mode:
            yield mode
    finally:
        torch.set_default_dtype(default)


class _InDouble(TorchFunctionMode):
    """Gives float64 where a shorter type is asked for, and watches choices."""

    def __init__(self) -> None:
        super().__init__()
        self.closest_choice = inf

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        name = getattr(func, "__name__", "")
        if name in ("float", "half", "bfloat16"):
            return args[0].double()
        args = tuple(_double(value) for value in args)
        kwargs = {key: _double(value) for key, value in (kwargs or {}).items()}
        if name in ("topk", "argmax", "max"):
            self._see(name, *args, **kwargs)
        return func(*args, **kwargs)

    def _see(self, name: str, values: Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - of a function of torch
        """Note how close a choice is: of the largest (``max``, ``argmax``) or of several (``topk``) along an axis."""
        num_taken = kwargs.pop("k", None) or (args[0] if name == "topk" else 1)
        dim = kwargs.get("dim", (*args, -1, -1)[1] if name == "topk" else (*args, None)[0])
        if not isinstance(dim, int) or not values.is_floating_point() or num_taken >= values.shape[dim]:
            return
        ordered = values.detach().sort(dim, descending=True).values
        taken, left = ordered.select(dim, num_taken - 1), ordered.select(dim, num_taken)
        differences = (taken - left) / (taken.abs() + left.abs())
        known = differences[left > _MASKED].nan_to_num(0.0)
        self.closest_choice = min([self.closest_choice, *known.flatten().tolist()])


def _double(value: Any) -> Any:  # noqa: ANN401 - any argument
    return torch.float64 if isinstance(value, torch.dtype) and value in _SHORTER else value


def _without_grouped_products(model: nn.Module) -> None:
    """Let experts run one by one: torch's grouped product knows no float64."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
