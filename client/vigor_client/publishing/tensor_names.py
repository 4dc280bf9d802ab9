"""Maps a trainer's tensors to the service's names if a wrapper around the trained model changes names.

torch.compile, DDP, FSDP and activation checkpointing insert parts of their own into the names of a state dict. Nothing
else about the tensors changes. PEFT's wrapper changes more than names, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from vigor_client.errors import TensorsRefusedError
from vigor_client.schemas.weights import TensorList

if TYPE_CHECKING:
    import torch

PEFT_PREFIX = "base_model.model."
TORCH_COMPILE_PREFIX = "_orig_mod."
_WRAPPER_PARTS = (TORCH_COMPILE_PREFIX, "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_OUTER_PREFIX = "module."  # DDP's and DeepSpeed's
_PEFT_ADVICE = (
    "this is PEFT's wrapper: publish model.merge_and_unload().state_dict() of a copy, or start the service with the "
    "directory of the adapter"
)

Item = TypeVar("Item")


class RenamedTensors(Mapping[str, "torch.Tensor"]):
    """Tensors under other names: ``renamed[name]`` is ``tensors[old_names[name]]``, read on access."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], old_names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._old_names = old_names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._old_names[name]]

    def __contains__(self, name: object) -> bool:  # Mapping's own method would read the tensor
        return name in self._old_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._old_names)

    def __len__(self) -> int:
        return len(self._old_names)


def with_plain_names(items: Mapping[str, Item]) -> dict[str, Item]:
    """Return weights or modules under the names of their model, without the prefix that `torch.compile` adds."""
    return {name.replace(TORCH_COMPILE_PREFIX, ""): item for name, item in items.items()}


def with_service_names(tensors: Mapping[str, torch.Tensor], wanted: TensorList) -> Mapping[str, torch.Tensor]:
    """Return the same tensors; names that the service does not have lose the parts that wrappers inserted.

    Raises:
        TensorsRefusedError: two names become equal without these parts, or all names have another prefix that none of
            the service's names has.
    """
    known = {name for info in wanted.tensors for name in info.names}
    if known.issuperset(tensors):
        return tensors
    old_names: dict[str, str] = {}
    for name in tensors:
        plain = _plain(name, known)
        if (other := old_names.setdefault(plain, name)) != name:
            raise TensorsRefusedError({name: f"is {plain} to the service, and so is {other}: give one of the two"})
    _refuse_foreign_prefix(old_names, known)
    return RenamedTensors(tensors, old_names)


def _plain(name: str, known: Collection[str]) -> str:
    """Return the name without the parts of wrappers if the service has that name, else the name unchanged."""
    plain = name
    for part in _WRAPPER_PARTS:
        plain = plain.replace(part, "")
    while plain not in known and plain.startswith(_OUTER_PREFIX):
        plain = plain.removeprefix(_OUTER_PREFIX)
    return plain if name not in known and plain in known else name


def _refuse_foreign_prefix(names: Collection[str], known: Collection[str]) -> None:
    first_parts = {name.partition(".")[0] + "." for name in names}
    has_prefix = len(first_parts) == 1 and all("." in name for name in names)
    if not has_prefix or any(name.startswith(tuple(first_parts)) for name in known):
        return
    is_peft = all(name.startswith(PEFT_PREFIX) for name in names)
    prefix = PEFT_PREFIX if is_peft else first_parts.pop()
    advice = _PEFT_ADVICE if is_peft else "take it away, or give the state dict of the model inside what wraps it"
    raise TensorsRefusedError(
        {f"{prefix}*": f"all {len(names)} names begin with it and none of the service's does; {advice}"}
    )
