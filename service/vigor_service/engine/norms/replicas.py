"""A second model with the same weights, for use on another thread.

What a model's code sets on its modules while it runs (rotary frequencies of a length, PEFT's merged experts) is then
seen by one thread only.
"""

from __future__ import annotations

import copy

from transformers import PreTrainedModel


def replica(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model's modules and of buffers that no checkpoint holds; all other tensors are shared.

    Raises:
        TypeError, RuntimeError: a module holds an object that cannot be copied.
    """
    shared = [*model.parameters(), *model.state_dict(keep_vars=True).values()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
