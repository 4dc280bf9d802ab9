"""Cache of the outcomes of the check at load, in files, so that the same model is checked once.

An outcome is valid for the bytes of a model, its config, the measured parameters, the device, the versions of the
libraries and the engine's own source. A file that cannot be read counts as missing. If the directory cannot be written
to, the log says so and nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.model.decoder import Layout
from vigor_service.engine.model.unwrap import causal_model
from vigor_service.engine.ops.json_file import replace_json

logger = logging.getLogger(__name__)

_MAX_OUTCOMES = 256  # files in the directory


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the check: the ``layout`` that proved exact, or None and the ``reason``.

    It is exact for sequences of up to ``max_tokens`` tokens (None: any number). ``layers_run_twice`` says whether
    layers may run twice.
    """

    layout: Layout | None
    max_tokens: int | None = None
    layers_run_twice: bool = False
    reason: str = ""


class CheckCache:
    """Outcomes in a directory, one file for each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, key: str) -> Outcome | None:
        """Return the outcome that is stored under this key; None if it is missing or cannot be read."""
        try:
            return _parsed(json.loads(self._path(key).read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, key: str, outcome: Outcome) -> None:
        """Store an outcome, and remove the oldest ones if there are too many."""
        try:
            replace_json(self._path(key), asdict(outcome))
            self._remove_oldest()
        except OSError as error:
            logger.info("cannot store the outcome of the self-check: %s", error)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"

    def _remove_oldest(self) -> None:
        files = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[_MAX_OUTCOMES:]:
            path.unlink(missing_ok=True)


def _parsed(values: dict[str, Any]) -> Outcome:
    outcome = Outcome(**values)
    is_limit = outcome.max_tokens is None or type(outcome.max_tokens) is int
    is_flag = type(outcome.layers_run_twice) is bool
    if outcome.layout not in ("packed", "single", None) or not is_limit or not is_flag:
        raise ValueError(f"not an outcome: {values}")
    return outcome


def outcome_key(model: PreTrainedModel, measured: Mapping[str, nn.Parameter]) -> str:
    """Return the digest of all that an outcome depends on, in hexadecimal digits."""
    inner = causal_model(model)
    tensors = sorted(model.state_dict().items())
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # hashing does not block the interpreter
        digests = list(threads.map(_digest, (tensor for _, tensor in tensors)))
    weights = [f"{name} {tensor.dtype} {digest}" for (name, tensor), digest in zip(tensors, digests, strict=True)]
    device = [_device_name(inner.device), str(inner.dtype)]
    versions = [torch.__version__, transformers.__version__, _source_digest()]
    lines = [type(inner).__name__, inner.config.to_json_string(), *weights, *measured, *device, *versions]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{list(tensor.shape)} {hashlib.sha256(values.numpy().data).hexdigest()}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {os.uname().machine} {torch.backends.cpu.get_cpu_capability()}"


def _source_digest() -> str:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
