"""From the settings of an engine to the engine, in whichever process it is to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vigor_service.observability.loading_progress import LoadingPhase

if TYPE_CHECKING:
    from vigor_service.engine.engine import Engine
    from vigor_service.engine.loading.loading import Policy
    from vigor_service.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is made from: settings without the keys, so that they may travel to other processes."""

    model: str | None
    dtype: str
    device: str
    trust_remote_code: bool
    parameters: str | None
    norm_probes: int | None
    activation_mib: int | None


def engine_settings(settings: Settings) -> EngineSettings:
    """Return the settings of an engine out of those of the service."""
    return EngineSettings(
        model=settings.model,
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        parameters=settings.parameters,
        norm_probes=settings.norm_probes,
        activation_mib=settings.activation_mib,
    )


def load_engine(
    settings: EngineSettings, begin: Callable[[LoadingPhase], None] = lambda _: None
) -> tuple[Engine, Policy]:
    """Load the model and check it; ``begin`` is told each phase.

    Raises:
        StartupError: it cannot be loaded, or not be scored with; says why.
    """
    from vigor_client.models.embedded import default_cache_dir
    from vigor_service.engine.engine import Engine
    from vigor_service.engine.loading.loading import ModelLoadError, load_policy
    from vigor_service.engine.norms.check_cache import CheckCache
    from vigor_service.errors import StartupError

    try:
        begin(LoadingPhase.READING_MODEL)
        policy = load_policy(
            settings.model,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        begin(LoadingPhase.CHECKING_NORMS)
        engine = Engine(
            policy.model,
            name=policy.name,
            parameters=settings.parameters,
            norm_probes=settings.norm_probes,
            activation_bytes=None if settings.activation_mib is None else settings.activation_mib << 20,
            check_cache=CheckCache(default_cache_dir() / "checks"),
        )
    except (ModelLoadError, ValueError) as error:
        raise StartupError(str(error)) from error
    return engine, policy
