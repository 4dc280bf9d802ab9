"""Rotary embeddings whose frequencies depend on the largest position in their input: longrope and dynamic.

transformers takes the largest position of a whole row and stores the resulting frequencies on the module. In a packed
row, one long sequence would then change all others, and a call would start from what an earlier call stored. Here each
sequence has the frequencies that it would have alone, in a model that has run nothing before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vigor_service.engine.ops.forwards import running_forwards

# One thread at a time: the module stores the frequencies between their choice and their use.
_lock = threading.Lock()


def length_dependent(model: nn.Module) -> list[nn.Module]:
    """Return the rotary embeddings of a model whose frequencies depend on the largest position."""
    return [module for module in model.modules() if any(map(_is_length_dependent, _rope_types(module).values()))]


def forget_earlier_lengths(model: nn.Module) -> None:
    """Make each later call of a length-dependent rotary embedding start as if the model had run nothing before."""
    for module in length_dependent(model):
        if not isinstance(vars(module).get("forward"), partial):
            module.forward = partial(_run_afresh, module, module.forward)


def each_sequence_alone(
    modules: Sequence[nn.Module], token_slices: Callable[[], Sequence[slice]]
) -> AbstractContextManager[None]:
    """Within this context, these modules run each sequence of a packed row as if it were alone.

    ``token_slices`` returns the rows of each sequence of the calling thread's batch.
    """
    return running_forwards({module: partial(_run_each, module.forward, token_slices) for module in modules})


def _run_each(
    forward: Callable[..., Any],
    token_slices: Callable[[], Sequence[slice]],
    x: Tensor,
    position_ids: Tensor,
    *args: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, ...]:
    """Return cos and sin, (1, N, d) each; positions are (..., N)."""
    outputs = [forward(x[:, rows], position_ids[..., rows], *args, **options) for rows in token_slices()]
    return tuple(torch.cat(pieces, dim=-2) for pieces in zip(*outputs, strict=True))


def _run_afresh(module: nn.Module, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401
    with _lock:
        for layer_type, rope_type in _rope_types(module).items():
            if "dynamic" in rope_type:
                _forget(module, f"{layer_type}_" if layer_type else "")
        return forward(*args, **options)


def _forget(module: nn.Module, prefix: str) -> None:
    """Reset the frequencies to those of the original length, which transformers does only for some lengths."""
    own = getattr(module, f"{prefix}inv_freq")
    setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(own.device).clone())
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _rope_types(module: nn.Module) -> dict[str, str]:
    """Return layer type -> kind of rotary embedding; the layer type is empty where all layers have the same."""
    rope_type: object = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        kinds = cast("dict[str, object]", rope_type)
        return {layer: kind for layer, kind in kinds.items() if isinstance(kind, str)}
    return {"": rope_type} if isinstance(rope_type, str) else {}


def _is_length_dependent(rope_type: str) -> bool:
    return rope_type == "longrope" or "dynamic" in rope_type
