"""Directories of versions as slime writes them, and the calls that serve what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.live_service import LiveService
from vigor_client.publishing.delta_plan import make_delta_plan
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.schemas.weights import TensorList
from vigor_client.weight_format.digest import model_digest
from vigor_service.weights.verification.fingerprint import initial_weights

Tensors = dict[str, torch.Tensor]


class Published:
    """A directory of versions, as slime writes them."""

    def __init__(self, directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.directory = directory
        self._base = {name: tensor.clone() for name, tensor in tensors.items()}

    def at(self, version: int) -> Tensors:
        """The weights of a version: each changes a row more."""
        tensors = {name: tensor.clone() for name, tensor in self._base.items()}
        for row in range(1, version + 1):
            tensors["embed.weight"][row] += 0.5
        return tensors

    def path(self, version: int) -> Path:
        path = self.directory / f"weight_v{version:06d}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def full(self, version: int) -> None:
        save_file(self.at(version), self.path(version) / "model.safetensors")

    def delta(self, version: int, base_version: int | None = None) -> None:
        base_version = version - 1 if base_version is None else base_version
        scorer = _Holding(self.at(base_version))
        served = initial_weights(scorer)  # pyright: ignore[reportArgumentType] - tensors and aliases are all it asks for
        wanted = TensorList(
            weight_version=base_version, weight_digest=model_digest(served.tensors), tensors=list(served.tensors)
        )
        snapshot = WeightSnapshot()
        snapshot.take_all(
            self.at(base_version), wanted, weight_version=base_version, weight_digest=wanted.weight_digest
        )
        plan = make_delta_plan(self.at(version), wanted, snapshot, weight_version=version)
        assert plan is not None
        for file in plan.files:
            (self.path(version) / file.announced.name).write_bytes(b"".join(file.chunks()))


class _Holding:
    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def tensors(self) -> Tensors:
        return self._tensors

    def aliases(self) -> dict[str, list[str]]:
        return {"embed.weight": ["head.weight"]}


def pull(service: LiveService, source: Path | str, version: int | str) -> dict[str, Any]:
    body = {"source_dir": str(source), "target_version": version, "local_checkpoint_dir": "/anywhere"}
    return outcome(service, "/pull_weights", body)


def outcome(service: LiveService, path: str, body: dict[str, object]) -> dict[str, Any]:
    answer = service.http.post(path, json=body)
    told = answer.json()
    assert answer.status_code == (200 if told["success"] else 400), answer.text
    return told
