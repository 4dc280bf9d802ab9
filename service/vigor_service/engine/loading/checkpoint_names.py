"""Conversion of a checkpoint's tensors into a model's, by transformers' own renames and conversions.

A checkpoint may have the experts of a layer one by one, while the model has them in one tensor. It may have names of
older versions, and buffers that the model no longer reads. ``from_pretrained`` handles all of these; this module does
the same for a model that is already loaded, one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key  # pyright: ignore[reportUnknownVariableType]

Read: TypeAlias = Callable[[str], Tensor]

# Causal masks and their fill value, which models like GPT-2 once saved; transformers' own lists have only some of them.
_OLD_BUFFERS = re.compile(r"\.(attn|attention|self_attn)\.masked_bias$")
_CONVERSION_FAULTS = (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError)


class ConversionError(Exception):
    """Tensors of a checkpoint cannot be converted into the model's; the message says which, and why."""


@dataclass(slots=True)
class Conversion:
    """A conversion of some tensors of a checkpoint into one or more tensors of the model, the first of them ``target``.

    ``sources`` are their names in the checkpoint, each with the pattern of ``converter`` that it matches.
    """

    target: str
    sources: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    converter: WeightConverter | None = None  # None: at most the name changes
    model: PreTrainedModel | None = None

    def tensors(self, read: Read, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the model's tensors by name, in ``dtype``; ``read`` returns a tensor by its name in the checkpoint.

        Raises:
            ConversionError: they do not cast to ``dtype``, come in two forms, or do not fit together.
        """
        self._refuse_two_forms()
        if self.converter is None:
            return {self.target: _cast(self.sources[0][0], read, dtype)}
        converter = deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.target, name, str(pattern), lambda name=name: _cast(name, read, dtype))  # pyright: ignore[reportArgumentType, reportUnknownMemberType] - it may be given unread
        try:
            made: dict[str, Any] = converter.convert(  # pyright: ignore[reportUnknownMemberType]
                self.target, model=self.model, config=getattr(self.model, "config", None)
            )
        except _CONVERSION_FAULTS as error:
            raise ConversionError(f"cannot be made of {self._first_sources()}: {error}") from error
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    def _refuse_two_forms(self) -> None:
        patterns = [pattern for _, pattern in self.sources]
        if len(patterns) > 1 and None in patterns:
            raise ConversionError(
                f"comes in several forms, as {self._first_sources()}: it is unclear which one to load"
            )

    def _first_sources(self) -> str:
        return ", ".join([name for name, _ in self.sources[:3]] + ["…"] * (len(self.sources) > 3))


@dataclass(frozen=True, slots=True)
class CheckpointPlan:
    """The conversions of a checkpoint's tensors; ``unexpected`` names those that the model has no place for."""

    conversions: list[Conversion]
    unexpected: list[str]


def plan_checkpoint(model: nn.Module, names: Iterable[str]) -> CheckpointPlan:
    """Return how tensors of these names are loaded into the model, as its class's ``from_pretrained`` loads them.

    Names that transformers ignores are in neither list. A model with an adapter takes only its own names.
    """
    if not isinstance(model, PreTrainedModel):
        return plan_of_own_names(model.state_dict(), names)
    own, transforms = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    conversions: dict[str, Conversion] = {}
    unexpected: dict[str, str] = {}  # renamed name (as in transformers' ignore lists) -> name in the checkpoint
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if target not in own and name in own:
            target, pattern = name, None
        if target not in own:
            unexpected[target] = name
            continue
        converter = None if pattern is None else converter_of[pattern]
        conversion = conversions.setdefault(target, Conversion(target, converter=converter, model=model))
        conversion.sources.append((name, pattern))
    refused = refused_unexpected(_not_ignored(model, unexpected))
    return CheckpointPlan(list(conversions.values()), sorted(unexpected[name] for name in refused))


def plan_of_own_names(own: Container[str], names: Iterable[str]) -> CheckpointPlan:
    """Return the plan for a model whose checkpoints have the model's own names."""
    names = list(names)
    return CheckpointPlan(
        [Conversion(name, [(name, None)]) for name in names if name in own],
        sorted(name for name in names if name not in own),
    )


def refused_unexpected(names: Iterable[str]) -> list[str]:
    """Return the names that transformers reports as unexpected and that are not buffers of old checkpoints."""
    return sorted(name for name in names if not _OLD_BUFFERS.search(name))


def _not_ignored(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Return the names that the model's class does not list among those it ignores."""
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(names))
    model._adjust_missing_and_unexpected_keys(info)  # pyright: ignore[reportArgumentType, reportPrivateUsage] - the one place that knows all lists
    return info.unexpected_keys


def _cast(name: str, read: Read, dtype: torch.dtype) -> Tensor:
    tensor = read(name)
    if tensor.dtype != dtype and not (tensor.dtype.is_floating_point and dtype.is_floating_point):
        raise ConversionError(f"{name} is {tensor.dtype}, which does not turn into {dtype}")
    return tensor.to(dtype)
