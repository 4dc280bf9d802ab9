"""A trainer's tensors, read as the service holds them: under its names, in its shapes and dtypes.

A tied tensor may be given under its canonical name, under an alias, or under several names with equal values.
Works on one tensor at a time and knows nothing about files or HTTP; torch is imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vigor_client.errors import TensorsRefusedError
from vigor_client.schemas.weights import TensorInfo, TensorList
from vigor_client.weight_format.element_types import ELEMENT_TYPES, is_finite, torch_dtype

if TYPE_CHECKING:
    import torch


def unknown_names(tensors: Mapping[str, torch.Tensor], wanted: TensorList) -> dict[str, str]:
    """Return a fault for each given name that the service does not have, not even as an alias."""
    known = {name for info in wanted.tensors for name in info.names}
    return {name: "the service has no such tensor" for name in tensors if name not in known}


def unsendable(wanted: TensorList) -> dict[str, str]:
    """Return a fault for each tensor whose dtype this client cannot write."""
    unknown = (info for info in wanted.tensors if info.dtype not in ELEMENT_TYPES)
    return {info.name: f"the service holds {info.dtype}, which this client cannot send" for info in unknown}


def given_names(tensors: Mapping[str, torch.Tensor], info: TensorInfo) -> list[str]:
    """Return the names under which a tensor is given, its canonical one first."""
    return [name for name in info.names if name in tensors]


def read(tensors: Mapping[str, torch.Tensor], info: TensorInfo) -> torch.Tensor:
    """Return one tensor as the service holds it: on the CPU, in its dtype, contiguous, flat. Checks nothing."""
    return _cast(tensors[given_names(tensors, info)[0]], info)


def read_checked(tensors: Mapping[str, torch.Tensor], info: TensorInfo) -> torch.Tensor:
    """Return the tensor as ``read`` does, after checking that it fits.

    Raises:
        TensorsRefusedError: the tensor is missing, has another shape or kind, is not finite in the service's dtype, or
            is given under several names with different values.
    """
    import torch

    if not (names := given_names(tensors, info)):
        raise TensorsRefusedError({info.name: "missing"})
    first, *others = names
    values = _fitting(first, tensors[first], info)
    for name in others:
        if not torch.equal(_fitting(name, tensors[name], info), values):
            fault = f"differs from {first}, to which it is tied: one of the two is stale"
            raise TensorsRefusedError({name: fault})
    return values


def _fitting(name: str, tensor: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    if fault := _misfit(tensor, info):
        raise TensorsRefusedError({name: fault})
    values = _cast(tensor, info)
    if not is_finite(values):
        raise TensorsRefusedError({name: f"holds values that are not finite in {info.dtype}"})
    return values


def _misfit(tensor: torch.Tensor, info: TensorInfo) -> str | None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}; give a plain tensor, whole and on one device"
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"has no dense data (layout {tensor.layout}, device {tensor.device})"
    if list(tensor.shape) != info.shape:
        return f"has shape {list(tensor.shape)}, the service needs {info.shape}"
    wanted = torch_dtype(info.dtype)
    if tensor.dtype != wanted and not (tensor.dtype.is_floating_point and wanted.is_floating_point):
        return f"has dtype {tensor.dtype}, which cannot be converted to the service's {info.dtype}"
    return None


def _cast(tensor: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch_dtype(info.dtype)).contiguous().flatten()
