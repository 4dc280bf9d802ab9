"""The ways in which an update writes a tensor: all of its values, or some of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vigor_client.weight_format.delta import Changes, apply_changes_

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Copy:
    """A write that does ``tensor.copy_(values)``."""

    values: Tensor

    def __call__(self, tensor: Tensor) -> None:
        tensor.copy_(self.values)


@dataclass(frozen=True, slots=True)
class Patch:
    """A write that does ``apply_changes_(tensor, changes)``."""

    changes: Changes

    def __call__(self, tensor: Tensor) -> None:
        apply_changes_(tensor, self.changes)


VerifiedWrite: TypeAlias = Copy | Patch
