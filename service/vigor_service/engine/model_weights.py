"""The weights of a model by name: what a trainer must supply, and how new values are written into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.interface import Write
from vigor_service.engine.loading.checkpoint_names import CheckpointPlan, plan_checkpoint


class ModelWeights:
    """The parameters and persistent buffers of a model, tied ones once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every tensor under its first name."""
        return {names[0]: tensor for names, tensor in _named_once(self._model)}

    def aliases(self) -> dict[str, list[str]]:
        """Return the other names of tied tensors."""
        return {names[0]: names[1:] for names, _ in _named_once(self._model) if len(names) > 1}

    def plan_checkpoint(self, names: Iterable[str]) -> CheckpointPlan:
        """Return ``checkpoint_names.plan_checkpoint(model, names)``."""
        return plan_checkpoint(self._model, names)

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        """Call each write with the model's tensor of that name, which it changes in place.

        Raises:
            KeyError, RuntimeError: a name is unknown, or a shape does not fit; earlier writes are applied already.
        """
        own = self.tensors()
        with torch.no_grad():
            for name, write in writes:
                write(own[name])


def _named_once(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return every tensor of the state dict with all of its names, the name in ``named_parameters`` first."""
    names: dict[int, list[str]] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [(group, tensors[group[0]].detach()) for group in names.values()]
