"""Verifies the files of an update of any encoding. The result may be swapped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from vigor_client.schemas.weights import TensorInfo, UpdateEncoding
from vigor_service.weights.verification.checkpoint import PlanCheckpoint, VerifiedCheckpoint, verify_checkpoint
from vigor_service.weights.verification.delta import VerifiedDelta, verify_delta
from vigor_service.weights.verification.full import VerifiedUpdate, verify_tensors

Verified: TypeAlias = VerifiedUpdate | VerifiedDelta | VerifiedCheckpoint


def verify(
    files: Mapping[str, Path],
    encoding: UpdateEncoding,
    served: Sequence[TensorInfo],
    values: Mapping[str, torch.Tensor],
    *,
    plan_checkpoint: PlanCheckpoint,
    base_version: int,
    version: int,
) -> Verified:
    """Check the files against the served tensors. Only a delta reads their ``values``.

    ``plan_checkpoint`` maps a checkpoint's tensors to the model's.

    Raises:
        InvalidRequestError: the files are refused; the error lists all faults.
    """
    if encoding == "delta":
        return verify_delta(files, served, values, base_version=base_version, version=version)
    if encoding == "checkpoint":
        return verify_checkpoint(files, served, plan_checkpoint)
    return verify_tensors(files, served, partial=encoding == "partial")
