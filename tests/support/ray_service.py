"""A service with engines of a real Ray cluster, and what one engine in this process says of its scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.support.service_process import ServiceProcess, service_process
from vigor_client import TransportError, VigorClient
from vigor_client.schemas.scoring import ScoreResponse
from vigor_client.weight_format.writes import Copy
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.sequences import TokenSequence

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")
REPLACED_SECONDS = 120.0
TOLERANCE = 1e-5
CHANGED = "model.norm.weight"
COMPLETIONS_PER_GROUP = 8


@contextmanager
def ray_service(directory: Path, checkpoint: Path, *flags: str) -> Iterator[ServiceProcess]:
    """Run a service whose scores are all computed, on a cluster of its own; it has to end in order."""
    given = ["--model", str(checkpoint), *flags, "--score-cache-entries", "0"]
    with service_process(directory, *given, preloaded=False) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()[-3000:]


def group(number: int) -> dict[str, object]:
    """A group of completions, another one for each number."""
    completions = [[index + 3, number + 3, 7] for index in range(COMPLETIONS_PER_GROUP)]
    return {"prompt_ids": [number + 1, 2, 3], "completions": completions}


def engines(service: ServiceProcess) -> list[psutil.Process]:
    """The processes of the engines on the cluster that the service has started."""
    started = psutil.Process(service.process.pid).children(recursive=True)
    return [process for process in started if _is_engine(process)]


def num_engines_up(client: VigorClient) -> int:
    """Return how many engines compute; 0 while the service is not ready, or answers late as it joins its cluster."""
    with suppress(TransportError):
        return client.engines().num_up if client.ready().status == "ok" else 0
    return 0


def _is_engine(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith("ray::EngineActor")
    except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
        return False


def weights_of(checkpoint: Path, version: int) -> dict[str, torch.Tensor]:
    """The model's weights in a version: its last norm is scaled."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {name: tensor * (1 + version / 8) if name == CHANGED else tensor for name, tensor in tensors.items()}


@cache
def _norms(checkpoint: Path, version: int, number: int) -> list[float]:
    """What one engine in this process says of a group."""
    policy = load_policy(str(checkpoint), device="cpu")
    engine = Engine(policy.model, name="tiny")
    engine.load([(CHANGED, Copy(weights_of(checkpoint, version)[CHANGED]))])
    prompt, completions = group(number).values()
    sequences = [TokenSequence(tuple(prompt), tuple(ids)) for ids in completions]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    return [score.grad_norm for score in engine.score(sequences).scores]


def assert_right(response: ScoreResponse, checkpoint: Path, number: int) -> None:
    """The norms of a group are those of one engine in this process, under the weights that the response names."""
    found = [score.grad_norm for score in response.groups[0].completions]
    assert found == pytest.approx(_norms(checkpoint, response.weight_version, number), rel=TOLERANCE)
