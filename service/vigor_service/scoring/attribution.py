"""Answers attribution requests. Each has all engines for itself, between two batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_client.schemas.attribution import (
    MAX_ATTRIBUTED_TOKENS,
    AttributionRequest,
    AttributionResponse,
    LayerShare,
    ParameterShare,
    TokenShare,
)
from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.scoring import Timing
from vigor_service.engine.sequences import TokenSequence, UnsupportedByEngineError
from vigor_service.errors import (
    EngineFailedError,
    SequenceExceedsMemoryError,
    SequenceTooLongError,
    invalid_request,
)
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.scheduler import Scheduler
from vigor_service.scoring.encoding import RequestEncoder
from vigor_service.scoring.ranking import wire_number
from vigor_service.scoring.service import time_limit
from vigor_service.threads.preparation import Preparation
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.version import WeightRequirement, Weights

if TYPE_CHECKING:
    from vigor_service.engine.interface import Attribution

_logger = logging.getLogger(__name__)
_PLACE: list[str | int] = ["completion"]


@dataclass(frozen=True, slots=True)
class _Attributed:
    attribution: Attribution
    weights: Weights
    timing: Timing


@dataclass(frozen=True, slots=True)
class Attributions:
    """Answers attribution requests. ``attribute`` is called after all work submitted before it, and runs alone."""

    model: str
    encoder: RequestEncoder
    admission: Admission
    current_weights: CurrentWeights
    scheduler: Scheduler
    attribute: Callable[[TokenSequence], Coroutine[None, None, Attribution]]
    preparation: Preparation
    timeout_seconds: float

    async def answer(self, request: AttributionRequest) -> str:
        """Return the answer as JSON. Cancelling removes the request from the queue; a running computation continues.

        Raises:
            ServiceError: nothing was attributed; the message says why.
        """
        async with time_limit(self.timeout_seconds, request):
            sequence = await self._encode(request)
            with self.admission.hold(sequence.num_tokens):
                attributed = await self._attribute(sequence, request)
            return await self.preparation.run(self._response, sequence, attributed)

    async def _encode(self, request: AttributionRequest) -> TokenSequence:
        sequence = await self.encoder.encode_sample(request, request.completion)
        if sequence.num_loss_tokens == 0:
            place = FieldError(loc=_PLACE, msg="no token of the completion counts in the loss, so it has no gradient")
            raise invalid_request([place], consequence="nothing was attributed")
        if sequence.num_tokens > MAX_ATTRIBUTED_TOKENS:
            length, limit = sequence.num_tokens, MAX_ATTRIBUTED_TOKENS
            place = FieldError(loc=_PLACE, msg=f"{length} tokens with its prompt, the limit is {limit}")
            detail = f"the completion has {length} tokens with its prompt; attribution takes at most {limit}"
            raise SequenceTooLongError(detail, errors=[place], length=length, limit=limit)
        return sequence

    async def _attribute(self, sequence: TokenSequence, request: AttributionRequest) -> _Attributed:
        requirement = WeightRequirement(request.weight_version, request.weight_digest)
        await self.current_weights.wait_for(requirement, wait_seconds=request.wait_seconds)
        submitted_at = perf_counter()
        async with self.scheduler.exclusive():
            weights, started_at = self.current_weights.require(requirement), perf_counter()
            attribution = await self._compute(sequence)
        timing = Timing(queue_seconds=started_at - submitted_at, compute_seconds=perf_counter() - started_at)
        return _Attributed(attribution, weights, timing)

    async def _compute(self, sequence: TokenSequence) -> Attribution:
        running = asyncio.ensure_future(self.attribute(sequence))
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
        error = running.exception()
        if error is None:
            return running.result()
        if isinstance(error, MemoryError):
            place = FieldError(loc=_PLACE, msg=f"{sequence.num_tokens} tokens with its prompt")
            detail = "the completion with its prompt does not fit into memory; a shorter one may"
            raise SequenceExceedsMemoryError(detail, errors=[place], length=sequence.num_tokens) from error
        if isinstance(error, UnsupportedByEngineError):
            raise invalid_request([FieldError(loc=_PLACE, msg=str(error))], consequence="nothing was attributed")
        _logger.error("attribution_failed", exc_info=error, extra={"tokens": sequence.num_tokens})
        raise EngineFailedError(f"the engine raised {type(error).__name__} on this request") from error

    def _response(self, sequence: TokenSequence, attributed: _Attributed) -> str:
        attribution, weights = attributed.attribution, attributed.weights
        texts = self.encoder.encoder.texts.pieces(sequence.token_ids)
        return AttributionResponse(
            model=self.model,
            weight_version=weights.version,
            weight_digest=weights.digest,
            num_tokens=attribution.num_loss_tokens,
            grad_norm=wire_number(attribution.grad_norm),
            scaled_grad_norm=wire_number(attribution.scaled_grad_norm),
            tokens=_tokens(sequence, texts, attribution),
            layers=_layers(attribution),
            unresolved_share=wire_number(attribution.unresolved_share),
            timing=attributed.timing,
        ).model_dump_json()


def _tokens(sequence: TokenSequence, texts: Sequence[str | None], attribution: Attribution) -> list[TokenShare]:
    targets = {position + 1 for position in sequence.loss_positions()}
    rows = zip(sequence.token_ids, texts, attribution.position_shares, strict=True)
    return [
        TokenShare(
            id=token_id,
            text=text,
            part="prompt" if position < len(sequence.prompt_ids) else "completion",
            in_loss=position in targets,
            share=wire_number(share),
        )
        for position, (token_id, text, share) in enumerate(rows)
    ]


def _layers(attribution: Attribution) -> list[LayerShare]:
    """Return the shares by layer, in the order of the model."""
    names_of: dict[str, list[str]] = {}
    for name in attribution.parameter_shares:
        names_of.setdefault(attribution.module_labels[name], []).append(name)
    shares, unresolved = attribution.parameter_shares, set(attribution.unresolved)
    return [
        LayerShare(
            name=place,
            share=wire_number(sum(shares[name] for name in names)),
            parameters=[
                ParameterShare(name=name, share=wire_number(shares[name]), has_positions=name not in unresolved)
                for name in names
            ],
        )
        for place, names in names_of.items()
    ]
