"""Names, shapes and checksums of tensors. Reads values, never changes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import torch

from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import checksum, model_digest, raw_bytes
from vigor_client.weight_format.element_types import dtype_name
from vigor_service.engine.interface import HeldWeights
from vigor_service.weights.version import Weights


def initial_weights(scorer: HeldWeights) -> Weights:
    """Return a description of the scorer's loaded weights, as version 0. Reads each tensor once, one at a time."""
    aliases, num_bytes, infos = scorer.aliases(), 0, list[TensorInfo]()
    for name, tensor in scorer.tensors().items():
        num_bytes += tensor.nbytes
        infos.append(describe(name, tensor, aliases.get(name, ())))
    return Weights(
        version=0,
        digest=model_digest(infos),
        tensors=tuple(infos),
        num_bytes=num_bytes,
        dtype=_common_dtype(infos),
        published_at=datetime.now(UTC),
    )


def describe(name: str, tensor: torch.Tensor, aliases: Sequence[str] = ()) -> TensorInfo:
    """Return the tensor's name, dtype, shape and the checksum of its bytes."""
    return TensorInfo(
        name=name,
        dtype=dtype_name(tensor.dtype),
        shape=list(tensor.shape),
        checksum=checksum(raw_bytes(tensor)),
        aliases=list(aliases),
    )


def _common_dtype(infos: Iterable[TensorInfo]) -> str:
    names = {info.dtype for info in infos}
    return names.pop() if len(names) == 1 else "mixed"
