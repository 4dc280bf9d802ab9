"""Constructs and connects the parts that serve once the model is loaded. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vigor_service.compat.text_samples import TextSamples
from vigor_service.http.idempotency import IdempotentResponses
from vigor_service.observability.metrics import Metrics
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.engine_pool import EnginePool
from vigor_service.scheduling.scheduler import Scheduler
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.attribution import Attributions
from vigor_service.scoring.encoding import RequestEncoder
from vigor_service.scoring.service import Scoring
from vigor_service.scoring.tokenization import Encoder
from vigor_service.settings import Settings
from vigor_service.threads.file_threads import FileThreads
from vigor_service.threads.preparation import Preparation
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.sources.broadcast import BroadcastReceiver
from vigor_service.weights.sources.local_files import LocalFiles
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.storage.state import StateDirectory
from vigor_service.weights.updates.commit import Committer
from vigor_service.weights.updates.manager import Updates

if TYPE_CHECKING:
    from vigor_service.engine.interface import EngineInfo, HeldWeights
    from vigor_service.weights.updates.restore import Replayed


@dataclass(frozen=True, slots=True)
class Serving:
    """All parts that exist once the model is loaded."""

    info: EngineInfo
    engines: EnginePool
    current_weights: CurrentWeights
    scheduler: Scheduler
    scoring: Scoring
    answers: IdempotentResponses
    group_assembly: GroupAssembly
    text_samples: TextSamples
    attributions: Attributions
    updates: Updates
    local_files: LocalFiles
    broadcasts: BroadcastReceiver


def build_serving(
    engines: EnginePool,
    held: HeldWeights,
    info: EngineInfo,
    encoder: Encoder,
    replayed: Replayed,
    *,
    settings: Settings,
    max_batch_tokens: int,
    preparation: Preparation,
    files: FileThreads,
    staging: StagingArea,
    state: StateDirectory | None,
    metrics: Metrics,
) -> Serving:
    """Return the parts that serve, with the weights that ``replayed`` holds. The scheduler is not started yet."""
    current_weights = CurrentWeights(replayed.weights, load=engines.load, metrics=metrics, damage=replayed.damage)
    admission = Admission(
        max_tokens=settings.max_queued_tokens, max_requests=settings.max_queued_requests, metrics=metrics
    )
    scheduler = Scheduler(
        engines,
        current_weights=current_weights,
        admission=admission,
        cache=ScoreCache(settings.score_cache_entries),
        max_batch_tokens=max_batch_tokens,
        metrics=metrics,
    )
    request_encoder = RequestEncoder(encoder, preparation)
    scoring = Scoring(
        model=info.model,
        encoder=request_encoder,
        admission=admission,
        scheduler=scheduler,
        preparation=preparation,
        metrics=metrics,
        timeout_seconds=settings.request_timeout_seconds,
    )
    attributions = Attributions(
        model=info.model,
        encoder=request_encoder,
        admission=admission,
        current_weights=current_weights,
        scheduler=scheduler,
        attribute=engines.attribute,
        preparation=preparation,
        timeout_seconds=settings.request_timeout_seconds,
    )
    updates = Updates(
        current_weights,
        Committer(
            current_weights,
            tensors=held.tensors,
            plan_checkpoint=held.plan_checkpoint,
            stage=engines.stage,
            exclusive=scheduler.exclusive,
            state=state,
            threads=files,
            metrics=metrics,
        ),
        staging=staging,
        state=state,
        threads=files,
        metrics=metrics,
        timeout_seconds=settings.update_timeout_seconds,
        max_upload_bytes=settings.max_upload_bytes,
    )
    group_assembly = GroupAssembly(scoring, timeout_seconds=settings.group_timeout_seconds, metrics=metrics)
    local_files = LocalFiles(updates, current_weights, root=settings.weights_root, threads=files)
    broadcasts = BroadcastReceiver(
        device=info.device,
        is_allowed=settings.allow_broadcast,
        timeout_seconds=settings.update_timeout_seconds,
    )
    return Serving(
        info=info,
        engines=engines,
        current_weights=current_weights,
        scheduler=scheduler,
        scoring=scoring,
        answers=IdempotentResponses(),
        group_assembly=group_assembly,
        text_samples=TextSamples(request_encoder, group_assembly),
        attributions=attributions,
        updates=updates,
        local_files=local_files,
        broadcasts=broadcasts,
    )
