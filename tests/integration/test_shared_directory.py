"""Publishing through a directory that client and service both see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.support.live_service import LiveService, live_service
from tests.support.pushing import UPDATES, announce, open_update
from vigor_client import (
    InvalidRequestError,
    SharedDirectory,
    SharedDirectoryError,
    VigorClient,
    WeightSnapshot,
    digest_of_tensors,
)

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "shared"
    root.mkdir()
    return root


@pytest.fixture
def service(root: Path, tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "staging", weights_root=root) as running:
        yield running


@pytest.fixture
def client(service: LiveService) -> Iterator[VigorClient]:
    with VigorClient(str(service.http.base_url), timeout_seconds=30.0) as client:
        yield client


def changed(service: LiveService, row: int) -> Tensors:
    tensors = {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}
    tensors["embed.weight"][row] += 0.25
    return tensors


class Recording(httpx.HTTPTransport):
    """Remembers what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.methods: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.methods.append(request.method)
        return super().handle_request(request)


def test_full_updates_and_deltas_end_with_the_trainers_bytes_and_leave_nothing(
    service: LiveService, root: Path
) -> None:
    snapshot, transport, recording = WeightSnapshot(), SharedDirectory(root), Recording()
    with VigorClient(str(service.http.base_url), transport=recording) as client:
        for version, encoding in ((1, "full"), (2, "delta"), (3, "delta")):
            tensors = changed(service, version)
            published = client.publish_weights(tensors, weight_version=version, snapshot=snapshot, transport=transport)
            assert published.encoding == encoding
            assert published.weight_digest == digest_of_tensors(tensors, client.tensors())
            torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)
            assert list(root.iterdir()) == []
    assert "PUT" not in recording.methods, "no byte of a file went over HTTP"


def test_the_two_may_see_the_directory_at_different_paths(
    service: LiveService, client: VigorClient, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "mounted").symlink_to(root)
    tensors = changed(service, 3)
    client.publish_weights(tensors, weight_version=1, transport=SharedDirectory(tmp_path / "mounted"))
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_a_service_that_sees_another_directory_refuses_and_serves_on(
    service: LiveService, client: VigorClient, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    before = client.weights()
    with pytest.raises(InvalidRequestError, match="is not a directory under the service's --weights-root"):
        client.publish_weights(changed(service, 3), weight_version=1, transport=SharedDirectory(tmp_path / "elsewhere"))
    assert client.weights() == before
    assert list((tmp_path / "elsewhere").iterdir()) == []
    client.publish_weights(changed(service, 3), weight_version=1)  # nothing stands in the way of the next


def test_a_directory_that_cannot_be_written_is_named(service: LiveService, client: VigorClient, tmp_path: Path) -> None:
    before = client.weights()
    with pytest.raises(SharedDirectoryError, match=r"cannot write an update to .*missing.*: No such file or directory"):
        client.publish_weights(changed(service, 3), weight_version=1, transport=SharedDirectory(tmp_path / "missing"))
    assert client.weights() == before


def test_a_service_without_a_root_says_how_to_start_it(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with (
        live_service(tmp_path / "staging") as service,
        VigorClient(str(service.http.base_url), timeout_seconds=30.0) as client,
        pytest.raises(InvalidRequestError, match="start the service with --weights-root"),
    ):
        client.publish_weights(changed(service, 3), weight_version=1, transport=SharedDirectory(tmp_path / "shared"))


@pytest.mark.parametrize("directory", ["..", "/", "../staging", "nowhere"])
def test_nothing_outside_the_root_is_taken(directory: str, service: LiveService) -> None:
    update_id = open_update(service.http, announce(b"bytes")).json()["update_id"]
    answer = service.http.post(f"{UPDATES}/{update_id}/take", json={"directory": directory})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["directory"]


def test_files_that_came_over_http_are_not_taken_again(service: LiveService, root: Path) -> None:
    first, second = b"first bytes", b"second bytes"
    files = [announce(first, name="a.safetensors"), announce(second, name="b.safetensors")]
    update = f"{UPDATES}/{open_update(service.http, *files).json()['update_id']}"
    assert service.http.put(f"{update}/files/a.safetensors", content=first).status_code == 200
    (root / "b.safetensors").write_bytes(second)
    for _ in range(2):  # asked again, it changes nothing
        taken = service.http.post(f"{update}/take", json={"directory": "."})
        assert taken.status_code == 200, taken.text
        assert taken.json()["received_files"] == ["a.safetensors", "b.safetensors"]


def test_a_refused_directory_is_as_it_was_and_may_be_taken_again(service: LiveService, root: Path) -> None:
    files = {name: bytes([index]) * 1000 for index, name in enumerate(("a", "b", "c"))}
    for name, data in files.items():
        (root / name).write_bytes(data)
    (root / "b").write_bytes(files["c"])
    announced = [announce(data, name=name) for name, data in files.items()]
    path = f"{UPDATES}/{open_update(service.http, *announced).json()['update_id']}"
    refused = service.http.post(f"{path}/take", json={"directory": str(root)})
    assert refused.status_code == 422
    assert [place["loc"] for place in refused.json()["errors"]] == [["files", "b"]]
    assert {file.name: file.read_bytes() for file in root.iterdir()} == files | {"b": files["c"]}
    assert service.http.get(path).json()["missing_files"] == ["a", "b", "c"]
    (root / "b").write_bytes(files["b"])
    assert service.http.post(f"{path}/take", json={"directory": str(root)}).json()["missing_files"] == []
    assert list(root.iterdir()) == []
