"""Names, shapes and checksums of tensors. Reads values, never changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import torch

from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import checksum, model_digest, raw_bytes
from vigor_client.weight_format.element_types import dtype_name
from vigor_service.engine.interface import HeldWeights
from vigor_service.weights.version import Weights


def initial_weights(scorer: HeldWeights) -> Weights:
    """Describe what the scorer was loaded with: version 0."""
    tensors, aliases = scorer.tensors(), scorer.aliases()
    infos = tuple(describe(name, tensor, aliases.get(name, ())) for name, tensor in tensors.items())
    return Weights(
        version=0,
        digest=model_digest(infos),
        tensors=infos,
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtype=_common_dtype(tensors),
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


def _common_dtype(tensors: Mapping[str, torch.Tensor]) -> str:
    names = {dtype_name(tensor.dtype) for tensor in tensors.values()}
    return names.pop() if len(names) == 1 else "mixed"
