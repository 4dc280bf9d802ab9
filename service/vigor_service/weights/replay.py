"""Back to the last published weights after a restart: stored updates are verified and applied, one after the other."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from vigor_service.engine.engine import Scorer
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.delta import VerifiedDelta, verify_delta
from vigor_service.weights.state_directory import DamagedStateError, StateDirectory, StoredUpdate
from vigor_service.weights.verification import VerifiedUpdate, verify_full_update
from vigor_service.weights.weights import Weights

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the model holds now; ``damage`` says why that is not what was published last."""

    weights: Weights
    damage: str | None = None


def replay(state: StateDirectory, scorer: Scorer, weights: Weights) -> Replayed:
    """Apply what is stored to a model that holds ``weights``. Nothing may be scored while there is damage."""
    try:
        for update in state.read():
            verified = _verified(update, scorer, weights)
            scorer.load(verified.writes())
            record = update.record
            weights = replace(weights, version=record.weight_version, digest=verified.digest, tensors=verified.tensors)
            _logger.info("weights_restored version=%d digest=%s", weights.version, weights.digest)
    except DamagedStateError as error:
        _logger.error("state_damaged place=%r have=%d", str(error), weights.version)
        return Replayed(weights, f"the state directory is damaged: {error}")
    return Replayed(weights)


def _verified(update: StoredUpdate, scorer: Scorer, weights: Weights) -> VerifiedUpdate | VerifiedDelta:
    record, place = update.record, f"{update.number:08d}"
    try:
        if record.encoding == "full":
            verified = verify_full_update(update.files, weights.tensors)
        else:
            _require_base(update, weights)
            verified = verify_delta(
                update.files,
                weights.tensors,
                scorer.tensors(),
                base_version=record.base_version,
                version=record.weight_version,
            )
    except InvalidRequestError as error:
        fault = error.errors[0]
        raise DamagedStateError(f"{place}/{'/'.join(map(str, fault.loc))} {fault.msg}") from error
    if verified.digest != record.weight_digest:
        raise DamagedStateError(f"{place} makes weights {verified.digest}, not {record.weight_digest}")
    return verified


def _require_base(update: StoredUpdate, weights: Weights) -> None:
    if update.record.base_digest != weights.digest:
        raise DamagedStateError(
            f"{update.number:08d} was made from weights {update.record.base_digest}, the model has {weights.digest}"
        )
