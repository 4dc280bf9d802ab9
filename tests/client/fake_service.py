"""A service in memory that keeps the contract's promises about weights: what client tests talk to.

Give it to ``httpx.MockTransport``; it serves the blocking and the async client alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import httpx
import safetensors.torch
import torch

from vigor_client.schemas.common import WireModel
from vigor_client.schemas.engines import EngineList, ScaleRequest
from vigor_client.schemas.service import Health, ModelInfo
from vigor_client.schemas.weights import (
    WHOLE_ENCODINGS,
    CommitResponse,
    TensorInfo,
    TensorList,
    UpdateProgress,
    UpdateRequest,
    UpdateStatus,
    WeightsInfo,
    WeightState,
)
from vigor_client.weight_format.digest import checksum, model_digest

MODEL = ModelInfo(
    model="tiny",
    architecture="LlamaForCausalLM",
    num_parameters=1234,
    num_measured_parameters=1234,
    dtype="float32",
    device="cpu",
    max_sequence_tokens=256,
    vocab_size=320,
    tied_embeddings=False,
    layout="packed",
    norm_probes=16,
    max_batch_tokens=2048,
    rules=[],
)
Handler = Callable[[httpx.Request], httpx.Response]


def answer(model: WireModel, status: int = 200) -> httpx.Response:
    """An answer as the service writes it."""
    return httpx.Response(status, content=model.model_dump_json(), headers={"Content-Type": "application/json"})


def problem(status: int, code: str, *, headers: Mapping[str, str] | None = None, **data: object) -> httpx.Response:
    """A refusal as the service writes it."""
    fields = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": f"the fake says {code}"}
    content_type = {"Content-Type": "application/problem+json"}
    return httpx.Response(status, content=json.dumps({**fields, **data}), headers={**content_type, **(headers or {})})


def describe(name: str, tensor: torch.Tensor, aliases: list[str] | None = None) -> TensorInfo:
    """What ``GET /v1/weights/tensors`` says of a tensor."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name=name, dtype=dtype, shape=list(tensor.shape), checksum=checksum(data), aliases=aliases or [])


class FakeService:
    """Weights under a version. ``instead`` holds handlers that answer the next requests in place of the service."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, list[str]] | None = None) -> None:
        self.tensors = dict(tensors)
        self.aliases = dict(aliases or {})
        self.weight_version = 0
        self.state: WeightState = "ready"
        self.update_progress: UpdateProgress | None = None
        self.requests: list[httpx.Request] = []
        self.lora_scalings: dict[str, float] = {}
        self.instead: dict[str, Handler] = {}  # "METHOD path-prefix" -> handler, used once
        self.num_engines = 1
        self._update: UpdateRequest | None = None
        self._files: dict[str, bytes] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        for key in list(self.instead):
            method, prefix = key.split(" ")
            if request.method == method and request.url.path.startswith(prefix):
                return self.instead.pop(key)(request)
        match request.method, request.url.path.split("/")[1:]:
            case "GET", ["v1", "model"]:
                return answer(MODEL.model_copy(update={"lora_scalings": self.lora_scalings}))
            case "GET", ["v1", "weights", "tensors"]:
                return answer(self.tensor_list())
            case "GET", ["v1", "weights"]:
                return answer(self._weights())
            case "GET", ["v1", "engines"]:
                return answer(self._engines())
            case "PUT", ["v1", "engines"]:
                self.num_engines = ScaleRequest.model_validate_json(request.content).num_engines
                return answer(self._engines())
            case "GET", ["readyz" | "healthz"]:
                return answer(Health(status="ok"))
            case "POST", ["v1", "weights", "updates"]:
                return self._open(UpdateRequest.model_validate_json(request.content))
            case "PUT", ["v1", "weights", "updates", "u1", "files", name]:
                return self._put(name, request)
            case "POST", ["v1", "weights", "updates", "u1", "commit"]:
                return self._commit()
            case "DELETE", ["v1", "weights", "updates", "u1"]:
                self._update = None
                return httpx.Response(204)
            case _:
                return problem(404, "not_found")

    @property
    def calls(self) -> list[str]:
        """The requests so far, as ``METHOD path``."""
        return [f"{request.method} {request.url.path}" for request in self.requests]

    @property
    def has_open_update(self) -> bool:
        return self._update is not None

    def tensor_list(self) -> TensorList:
        infos = [describe(name, tensor, self.aliases.get(name)) for name, tensor in self.tensors.items()]
        return TensorList(weight_version=self.weight_version, weight_digest=model_digest(infos), tensors=infos)

    def _engines(self) -> EngineList:
        up = {"is_up": True, "weight_version": 0, "num_batches": 0, "busy_seconds": 0.0, "num_restarts": 0}
        return EngineList.model_validate({"engines": [{"number": n, **up} for n in range(self.num_engines)]})

    def _weights(self) -> WeightsInfo:
        return WeightsInfo(
            weight_version=self.weight_version,
            weight_digest=self.tensor_list().weight_digest,
            state=self.state,
            num_tensors=len(self.tensors),
            num_bytes=0,
            dtype="mixed",
            published_at="2026-01-01T00:00:00Z",
            update=self.update_progress,
        )

    def _open(self, update: UpdateRequest) -> httpx.Response:
        served = self.tensor_list()
        if update.base_digest not in (None, served.weight_digest) or (
            update.encoding not in WHOLE_ENCODINGS and self.state == "poisoned"
        ):
            return problem(409, "weight_base_mismatch", have=served.weight_digest, want=update.base_digest)
        self._update, self._files = update, {}
        status = UpdateStatus(update_id="u1", weight_version=update.weight_version, state="receiving")
        return answer(status, status=201)

    def _put(self, name: str, request: httpx.Request) -> httpx.Response:
        assert self._update is not None
        announced = {file.name: file for file in self._update.files}[name]
        assert request.headers["Content-Length"] == str(announced.num_bytes)
        assert "Transfer-Encoding" not in request.headers
        if len(request.content) != announced.num_bytes or checksum(request.content) != announced.checksum:
            return problem(422, "invalid_request", errors=[{"loc": ["files", name], "msg": "wrong checksum"}])
        self._files[name] = request.content
        return answer(UpdateStatus(update_id="u1", weight_version=self._update.weight_version, state="receiving"))

    def _commit(self) -> httpx.Response:
        assert self._update is not None
        assert sorted(self._files) == sorted(file.name for file in self._update.files)
        new = {name: tensor for data in self._files.values() for name, tensor in safetensors.torch.load(data).items()}
        if self._update.encoding == "checkpoint":
            if unknown := sorted(new.keys() - self.tensors.keys()):
                places = [{"loc": ["files", name], "msg": "the model has no such tensor"} for name in unknown]
                self._update = None
                return problem(422, "invalid_request", errors=places)
            new = {name: tensor.to(self.tensors[name].dtype) for name, tensor in new.items()}
        if self._update.encoding == "partial":
            assert new
            assert new.keys() <= self.tensors.keys()
            new = self.tensors | new
        assert new.keys() == self.tensors.keys()
        changed = sum(not torch.equal(new[name], self.tensors[name]) for name in new)
        self.tensors, self.weight_version, self.state = new, self._update.weight_version, "ready"
        self._update = None
        return answer(
            CommitResponse(
                weight_version=self.weight_version,
                weight_digest=self.tensor_list().weight_digest,
                num_changed_tensors=changed,
                verify_seconds=0.0,
                swap_seconds=0.0,
            )
        )
