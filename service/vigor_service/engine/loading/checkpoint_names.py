"""Which of a model's tensors the tensors of its checkpoint become, by transformers' own renames and conversions.

A checkpoint has the experts of a layer one by one where the model has them in one tensor, names of older versions, and
buffers that the model no longer reads. ``from_pretrained`` knows them all; this is the same knowledge for a model that
is loaded already, one tensor at a time.
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

# Causal masks and their fill value, which GPT-2 and its kin once saved; transformers' own lists have only some of them.
_OLD_BUFFERS = re.compile(r"\.(attn|attention|self_attn)\.masked_bias$")
_CONVERSION_FAULTS = (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError)


class ConversionError(Exception):
    """Tensors of a checkpoint do not make the model's; the message says which, and why."""


@dataclass(slots=True)
class Conversion:
    """Tensors of a checkpoint that make tensors of the model together, ``target`` first among them.

    ``sources`` are their names in the checkpoint, each with the pattern of ``converter`` that it matches.
    """

    target: str
    sources: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    converter: WeightConverter | None = None  # None: at most the name changes
    model: PreTrainedModel | None = None

    def tensors(self, read: Read, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the model's tensors by name, made of what ``read`` gives by the checkpoint's names, in ``dtype``.

        Raises:
            ConversionError: they are numbers of another kind, come in two forms, or do not fit together.
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
    """How the tensors of a checkpoint make a model's; ``unexpected`` are those that the model has no place for."""

    conversions: list[Conversion]
    unexpected: list[str]


def plan_checkpoint(model: nn.Module, names: Iterable[str]) -> CheckpointPlan:
    """Plan how tensors of these names would be loaded into the model, as its class's ``from_pretrained`` does.

    What transformers knows to ignore is in neither list. A model with an adapter has its own names alone.
    """
    if not isinstance(model, PreTrainedModel):
        return plan_of_own_names(model.state_dict(), names)
    own, transforms = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    conversions: dict[str, Conversion] = {}
    unexpected: dict[str, str] = {}  # name as renamed, by which transformers ignores -> name in the checkpoint
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
    """Plan for a model whose checkpoints have its own names."""
    names = list(names)
    return CheckpointPlan(
        [Conversion(name, [(name, None)]) for name in names if name in own],
        sorted(name for name in names if name not in own),
    )


def refused_unexpected(names: Iterable[str]) -> list[str]:
    """Return the names that transformers reports as unexpected and that are no buffers of old checkpoints."""
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
