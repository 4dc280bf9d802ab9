"""Typed versions of torch functions with incomplete annotations. Each runs exactly torch's own function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def apply(function: type[Function], *arguments: object) -> Any:  # noqa: ANN401 - what its forward returns
    """Return ``function.apply(*arguments)``."""
    return function.apply(*arguments)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def gradients_of(
    output: Tensor, inputs: Sequence[Any], output_gradient: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Return ``torch.autograd.grad`` by tensors or graph edges; None for those that the output does not depend on."""
    return torch.autograd.grad(output, inputs, output_gradient, allow_unused=True)


def split(tensor: Tensor, sizes: int | list[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Return ``tensor.split(sizes, dim)``."""
    return tensor.split(sizes, dim)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def unflatten(tensor: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return ``tensor.unflatten(dim, sizes)``."""
    return tensor.unflatten(dim, sizes)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def to_list(tensor: Tensor) -> list[Any]:
    """Return ``tensor.tolist()`` of a tensor with at least one axis."""
    return tensor.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, sorted, and for each input row the index of the distinct row that equals it."""
    return rows.unique(dim=0, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def runs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the length of each run of equal values."""
    return torch.unique_consecutive(values, return_counts=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
