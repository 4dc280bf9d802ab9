"""Restores the last published weights after a restart: verifies and applies the stored updates, one by one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from vigor_client.schemas.weights import WHOLE_ENCODINGS
from vigor_service.engine.interface import HeldWeights
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.storage.state import DamagedStateError, StateDirectory, StoredUpdate
from vigor_service.weights.verification.verify import Verified, verify
from vigor_service.weights.version import Weights

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The weights that the model holds now. ``damage`` says why they are not the last published ones."""

    weights: Weights
    damage: str | None = None


def replay(state: StateDirectory, scorer: HeldWeights, weights: Weights) -> Replayed:
    """Apply the stored updates to a model that holds ``weights``. If the result has damage, nothing may be scored."""
    try:
        for update in state.read():
            verified = _verified(update, scorer, weights)
            scorer.load(verified.writes())
            record = update.record
            weights = replace(weights, version=record.weight_version, digest=verified.digest, tensors=verified.tensors)
            _logger.info("weights_restored", extra={"version": weights.version, "digest": weights.digest})
    except (DamagedStateError, OSError) as error:  # a file may become unreadable between two reads
        _logger.error("stored_weights_corrupt", extra={"path": str(error), "serving_version": weights.version})
        return Replayed(weights, f"the state directory is damaged: {error}")
    return Replayed(weights)


def _verified(update: StoredUpdate, scorer: HeldWeights, weights: Weights) -> Verified:
    record = update.record
    if record.encoding not in WHOLE_ENCODINGS and record.base_digest != weights.digest:
        raise DamagedStateError(f"{update.name} was made from weights {record.base_digest}, not {weights.digest}")
    try:
        verified = verify(
            update.files,
            record.encoding,
            weights.tensors,
            scorer.tensors(),
            plan_checkpoint=scorer.plan_checkpoint,
            base_version=record.base_version,
            version=record.weight_version,
        )
    except InvalidRequestError as error:
        fault = error.errors[0]
        raise DamagedStateError(f"{update.name}/{'/'.join(map(str, fault.loc))} {fault.msg}") from error
    if verified.digest != record.weight_digest:
        raise DamagedStateError(f"{update.name} makes weights {verified.digest}, not {record.weight_digest}")
    return verified
