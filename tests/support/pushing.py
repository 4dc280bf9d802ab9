"""Weight updates as raw HTTP, so that tests can send what no client would."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import torch
from safetensors.torch import save

from vigor_client.weight_format.digest import checksum

UPDATES = "/v1/weights/updates"
FILE = "model.safetensors"


def announce(data: bytes, *, name: str = FILE) -> dict[str, object]:
    """Return a file as it is announced when an update is opened."""
    return {"name": name, "num_bytes": len(data), "checksum": checksum(data)}


def open_update(
    http: httpx.Client, *files: Mapping[str, object], version: int = 1, base_version: int | None = None
) -> httpx.Response:
    """Ask for an update of these files."""
    body = {"weight_version": version, "base_version": base_version, "files": list(files)}
    return http.post(UPDATES, json=body)


def push(http: httpx.Client, tensors: Mapping[str, torch.Tensor], *, version: int = 1) -> httpx.Response:
    """Open, send and commit one file; returns the answer to the commit."""
    return push_bytes(http, save(dict(tensors)), version=version)


def push_bytes(http: httpx.Client, data: bytes, *, version: int = 1) -> httpx.Response:
    """`push` of bytes that may be no safetensors at all."""
    opened = open_update(http, announce(data), version=version)
    assert opened.status_code == 201, opened.text
    path = f"{UPDATES}/{opened.json()['update_id']}"
    sent = http.put(f"{path}/files/{FILE}", content=data)
    assert sent.status_code == 200, sent.text
    return http.post(f"{path}/commit")
