"""The types of a tensor's elements: their names on the wire (torch's) and in safetensors files, and their sizes.

torch is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class ElementType(NamedTuple):
    """Safetensors' name of a dtype, and the size of one element in bytes."""

    code: str
    num_bytes: int


ELEMENT_TYPES = {
    "float64": ElementType("F64", 8),
    "float32": ElementType("F32", 4),
    "float16": ElementType("F16", 2),
    "bfloat16": ElementType("BF16", 2),
    "int64": ElementType("I64", 8),
    "int32": ElementType("I32", 4),
    "int16": ElementType("I16", 2),
    "int8": ElementType("I8", 1),
    "uint8": ElementType("U8", 1),
    "bool": ElementType("BOOL", 1),
}
"""Element types by their name on the wire."""

_NAMES = {element.code: name for name, element in ELEMENT_TYPES.items()}


def dtype_of_code(code: str) -> str:
    """Return the name on the wire of a safetensors dtype; for an unknown dtype the code itself."""
    return _NAMES.get(code, code)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name on the wire: ``float32``, ``bfloat16``, …"""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of this name on the wire."""
    import torch

    return getattr(torch, name)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return ``tensor.isfinite().all()``, computed without a mask as large as the tensor."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    smallest, largest = tensor.aminmax()  # both are NaN if any element is
    return bool(smallest.isfinite() & largest.isfinite())
