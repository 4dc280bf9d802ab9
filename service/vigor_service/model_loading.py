"""Loads an engine from settings, in the process in which it will compute. Only this module knows the real engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from vigor_service.engine.memory.malloc import tune_heap
from vigor_service.errors import StartupError
from vigor_service.observability.loading_progress import LoadingPhase
from vigor_service.scoring.end_tokens import generation_ends

if TYPE_CHECKING:
    from vigor_service.engine.interface import HeldWeights, Scorer
    from vigor_service.engine.loading.loading import Policy
    from vigor_service.scoring.text_tokens import Tokenizer
    from vigor_service.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of an engine. They contain no keys, so they may be sent to other processes."""

    model: str | None
    dtype: str
    device: str
    trust_remote_code: bool
    parameters: str | None
    norm_probes: int | None
    activation_mib: int | None
    product_library: str


def engine_settings(settings: Settings) -> EngineSettings:
    """Return the engine's part of the service's settings."""
    return EngineSettings(
        model=settings.model,
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        parameters=settings.parameters,
        norm_probes=settings.norm_probes,
        activation_mib=settings.activation_mib,
        product_library=settings.product_library,
    )


class LoadedEngine(NamedTuple):
    """An engine, its tokenizer, and the token ids that end a completion."""

    scorer: Scorer
    tokenizer: Tokenizer
    generation_ends: tuple[int, ...]


class LoadedCopy(NamedTuple):
    """The weights of a model on this host, with its tokenizer and the token ids that end a completion."""

    held: HeldWeights
    tokenizer: Tokenizer
    generation_ends: tuple[int, ...]


def load_engine(settings: EngineSettings, begin: Callable[[LoadingPhase], None] = lambda _: None) -> LoadedEngine:
    """Load the model and check it. ``begin`` is called with each phase.

    Raises:
        StartupError: the model cannot be loaded, or cannot be used for scoring; the message says why.
    """
    from vigor_client.models.embedded import default_cache_dir
    from vigor_service.engine.engine import Engine
    from vigor_service.engine.norms.check_cache import CheckCache

    _choose_library(settings)
    begin(LoadingPhase.READING_MODEL)
    policy = _policy(settings, dtype=settings.dtype, device=settings.device)
    begin(LoadingPhase.CHECKING_NORMS)
    try:
        engine = Engine(
            policy.model,
            name=policy.name,
            parameters=settings.parameters,
            norm_probes=settings.norm_probes,
            activation_bytes=_activation_bytes(settings),
            check_cache=CheckCache(default_cache_dir() / "checks"),
        )
    except ValueError as error:
        raise StartupError(str(error)) from error
    return LoadedEngine(engine, _tokenizer(policy), generation_ends(policy.model))


def load_scorer(settings: EngineSettings) -> Scorer:
    """Load an engine in a process of its own, whose heap is set up like the service's.

    Raises:
        StartupError: the model cannot be loaded, or cannot be used for scoring; the message says why.
    """
    tune_heap(short_of_memory=settings.activation_mib is not None)
    return load_engine(settings).scorer


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the ``size`` processes of an engine. ``timeout_seconds`` limits connecting and each collective."""

    rank: int
    size: int
    timeout_seconds: float


def load_shard(settings: EngineSettings, shard: Shard, address: str) -> Scorer:
    """Load this rank's part of a model, together with the other ranks, which meet at ``address``, and check it.

    The heap is set up to save memory, because a model is divided among ranks only when memory is short.

    Raises:
        StartupError: the model cannot be loaded in parts, or cannot be used for scoring; the message says why.
    """
    from vigor_service.engine.loading.checkpoint import IncompleteCheckpointError
    from vigor_service.engine.loading.loading import (
        ModelLoadError,
        model_directory,
        resolve_device,
        resolve_dtype,
    )
    from vigor_service.engine.model.parameter_selection import measured_parameters
    from vigor_service.engine.sharding.engine import ShardedEngine
    from vigor_service.engine.sharding.ranks import join_ranks
    from vigor_service.engine.sharding.streaming import load_sharded

    refuse_unshardable(settings)
    tune_heap(short_of_memory=True)
    _choose_library(settings)
    try:
        device = resolve_device(settings.device)
        directory, name = model_directory(settings.model)
        ranks = join_ranks(
            shard.rank, shard.size, address=address, device=device, timeout_seconds=shard.timeout_seconds
        )
        model, architecture, names = load_sharded(
            directory,
            ranks,
            dtype=resolve_dtype(settings.dtype, device),
            device=device,
            trust_remote_code=settings.trust_remote_code,
            names_of=lambda model: list(measured_parameters(model, settings.parameters)),
        )
        return ShardedEngine(
            model,
            ranks,
            names,
            name=name,
            architecture=architecture,
            activation_bytes=_activation_bytes(settings),
        )
    except (ModelLoadError, IncompleteCheckpointError, ValueError) as error:
        raise StartupError(str(error)) from error


def refuse_unshardable(settings: EngineSettings) -> None:
    """Check that an engine over several devices supports the settings.

    Raises:
        StartupError: it does not; the message names the setting.
    """
    if settings.norm_probes is not None:
        raise StartupError("--norm-probes (VIGOR_NORM_PROBES) needs --shard 1: norms over several devices are exact")
    if (settings.parameters or "").startswith("last-"):
        raise StartupError(
            f"--parameters {settings.parameters} (VIGOR_PARAMETERS) needs --shard 1: over several devices, measure "
            "all, norms, or a regular expression over parameter names"
        )


def _choose_library(settings: EngineSettings) -> None:
    """Select the library that multiplies matrices in this process: the configured one, or the faster one if auto."""
    from vigor_client.models.embedded import default_cache_dir
    from vigor_service.engine.ops import gemm

    if settings.product_library == "auto":
        gemm.CHOICE.keep_in(default_cache_dir() / "products")
    else:
        gemm.CHOICE.forced = settings.product_library


def _activation_bytes(settings: EngineSettings) -> int | None:
    return None if settings.activation_mib is None else settings.activation_mib << 20


def load_copy(settings: EngineSettings, *, dtype: str) -> LoadedCopy:
    """Load the model's weights into the memory of this host, to send them to engines; nothing is computed with them.

    Raises:
        StartupError: they cannot be loaded; the message says why.
    """
    from vigor_service.engine.model_weights import ModelWeights

    policy = _policy(settings, dtype=dtype, device="cpu")
    return LoadedCopy(ModelWeights(policy.model), _tokenizer(policy), generation_ends(policy.model))


def _policy(settings: EngineSettings, *, dtype: str, device: str) -> Policy:
    from vigor_service.engine.loading.loading import ModelLoadError, load_policy

    try:
        return load_policy(settings.model, dtype=dtype, device=device, trust_remote_code=settings.trust_remote_code)
    except (ModelLoadError, ValueError) as error:
        raise StartupError(str(error)) from error


def _tokenizer(policy: Policy) -> Tokenizer:
    # transformers adds the special tokens to a tokenizer at run time, so type checkers do not know them.
    return cast("Tokenizer", policy.tokenizer)
