"""`vigor-service`: read the settings, open the socket, load the model, serve, drain.

Nothing heavy is imported before the settings are read.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from vigor_service.engine.memory.malloc import tune_heap
from vigor_service.observability.logs import configure_logging, join_transformers

if TYPE_CHECKING:
    from vigor_service.observability.loading_progress import LoadingProgress
    from vigor_service.observability.otel import Tracing
    from vigor_service.runtime import Loaded
    from vigor_service.settings import Settings

_REQUIRED = (
    "fastapi", "httptools", "prometheus_client", "pydantic_settings", "safetensors", "torch", "transformers", "uvicorn",
    "uvloop", "xxhash",
)  # fmt: skip

LOADING_SECONDS = 3600.0
"""Maximum time for an engine in another process to load the model, including a download if one is needed."""

_logger = logging.getLogger("vigor_service")  # __name__ is "__main__" when this module is run
_CHECKOUT = "in a checkout of vigor-rl"
_COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def main() -> None:
    """Run the console script."""
    missing = [name for name in _REQUIRED if find_spec(name) is None]
    if missing:
        _exit(2, f"{', '.join(missing)} not installed: pip install '.[service]' {_CHECKOUT}")
    if "--version" in sys.argv[1:]:
        print(f"vigor-service {version('vigor-rl')}")
        return
    settings = _read_settings()
    _require_model(settings.model)
    configure_logging(settings.log_level, settings.log_format)
    _warn_of_unknown_variables()
    tune_heap(short_of_memory=settings.activation_mib is not None)

    from vigor_service.observability.loading_progress import LoadingProgress
    from vigor_service.server import serve

    progress = LoadingProgress()
    load_model = partial(_load_model, settings, progress)
    serve(settings, load_model, tracing=_tracing(settings.otlp_endpoint), progress=progress)


def _read_settings() -> Settings:
    from pydantic import ValidationError
    from pydantic_settings import CliApp, SettingsError

    from vigor_service.settings import Settings, fault_lines
    from vigor_service.unknown_names import unknown_flags

    if unknown := unknown_flags(sys.argv[1:]):
        _exit(2, *(f"{line} (see vigor-service --help)" for line in unknown))
    try:
        return CliApp.run(Settings)
    except ValidationError as error:
        _exit(2, *fault_lines(error))
    except SettingsError as error:
        _exit(2, str(error))


def _warn_of_unknown_variables() -> None:
    from vigor_service.unknown_names import unknown_variables

    for line in unknown_variables(os.environ):
        _logger.warning("%s", line)


def _require_model(source: str | None) -> None:
    """Refuse a missing model before torch is imported, which takes seconds."""
    from vigor_client.errors import ModelSourceError
    from vigor_client.models.model_source import require_model

    try:
        if source is not None:
            require_model(source)
    except ModelSourceError as error:
        _exit(1, f"--model (VIGOR_MODEL): {error}")


def _tracing(url: str | None) -> Tracing | None:
    """Return the tracer of requests; None unless the setting or the standard variables name a collector."""
    named = [name for name in _COLLECTORS if os.environ.get(name)]
    if url is None and not named:
        return None
    try:
        from vigor_service.observability.otel import Tracing
    except ModuleNotFoundError as error:
        asked = "--otlp-endpoint (VIGOR_OTLP_ENDPOINT)" if url is not None else named[0]
        _exit(2, f"{asked}: {error.name} is not installed: pip install '.[service,otel]' {_CHECKOUT}")
    return Tracing(None if url is None else f"{url.rstrip('/')}/v1/traces", version=version("vigor-rl"))


def _load_model(settings: Settings, progress: LoadingProgress) -> Loaded:
    """Load the model that the settings name. Runs on the compute thread."""
    from vigor_service.model_loading import engine_settings, load_engine
    from vigor_service.runtime import LoadedModel

    if settings.log_format == "json":
        join_transformers()
    if settings.engines > 1 or settings.shard > 1 or settings.ray_address is not None:
        return _load_cluster(settings, progress)
    return LoadedModel(*load_engine(engine_settings(settings), progress.begin))


def _load_cluster(settings: Settings, progress: LoadingProgress) -> Loaded:
    from vigor_service.cluster.engines import Limits
    from vigor_service.cluster.loading import ClusterSettings, LoadedCluster
    from vigor_service.model_loading import engine_settings
    from vigor_service.observability.loading_progress import LoadingPhase

    progress.begin(LoadingPhase.READING_MODEL)
    limits = Limits(
        loading=LOADING_SECONDS, computing=settings.watchdog_seconds, weights=settings.update_timeout_seconds
    )
    cluster = ClusterSettings(settings.engines, settings.shard, settings.ray_address, limits)
    return LoadedCluster(engine_settings(settings), cluster)


def _exit(code: int, *lines: str) -> NoReturn:
    for line in lines:
        print(f"vigor-service: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
