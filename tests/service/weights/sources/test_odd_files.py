"""Files under --weights-root that are none, lie elsewhere, or have names that nothing can have: refused at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.live_service import LiveService
from tests.support.published import Published, outcome, pull
from tests.support.pushing import UPDATES, announce, open_update, push
from vigor_client.schemas.weights import MAX_UPDATE_FILES
from vigor_client.weight_format.delta_index import INDEX_NAME, MAX_INDEX_BYTES
from vigor_service.weights.sources.published_versions import MAX_VERSIONS


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def as_directory(path: Path) -> None:
    path.mkdir()


def as_link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside.json"
    outside.write_text('{"weight_map": {"embed.weight": "model.safetensors"}}')
    path.symlink_to(outside)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.safetensors", INDEX_NAME, "config.json", "shard.safetensors"])
@pytest.mark.parametrize("kind", [as_pipe, as_link_to_itself, as_directory, as_link_outside])
def test_what_is_no_plain_file_under_the_root_is_refused_at_once_and_holds_no_thread(
    service: LiveService, published: Published, name: str, kind: Callable[[Path], None]
) -> None:
    path = published.path(1)
    index = json.dumps({"weight_map": {"embed.weight": "shard.safetensors"}})
    (path / INDEX_NAME).write_text(index)
    (path / name).unlink(missing_ok=True)
    kind(path / name)
    for _ in range(8):  # more than there are threads
        assert not pull(service, published.directory, 1)["success"]
        assert not outcome(service, "/update_weights_from_disk", {"model_path": str(path), "weight_version": 1})[
            "success"
        ]
    assert push(service.http, published.at(1)).status_code == 200


@pytest.mark.parametrize(
    "directory", ["to-itself", "to-itself/below", "nowhere", "file", "file/below", "", "\0", "x" * 5000]
)
def test_what_is_no_directory_is_refused_by_name(service: LiveService, root: Path, directory: str) -> None:
    (root / "to-itself").symlink_to(root / "to-itself")
    (root / "file").touch()
    body: dict[str, object] = {"model_path": directory, "weight_version": 1}
    for told in (pull(service, directory, 1), outcome(service, "/update_weights_from_disk", body)):
        assert not told["success"]
    update_id = open_update(service.http, announce(b"bytes")).json()["update_id"]
    answer = service.http.post(f"{UPDATES}/{update_id}/take", json={"directory": directory})
    assert answer.status_code == 422, answer.text


def test_an_index_is_not_read_before_it_is_known_to_lie_under_the_root(
    service: LiveService, published: Published, root: Path
) -> None:
    published.full(1)
    published.delta(2)
    outside = root.parent / "outside"
    published.path(2).rename(outside)
    published.directory.joinpath("weight_v000002").symlink_to(outside)
    told = pull(service, published.directory, 2)
    assert "is outside" in told["message"]
    assert not told["success"]


@pytest.mark.parametrize("num_files", [MAX_UPDATE_FILES, 5000])
def test_an_index_of_too_many_files_is_refused_by_their_number(
    service: LiveService, published: Published, num_files: int
) -> None:
    published.full(1)
    published.delta(2)
    index = json.loads((published.path(2) / INDEX_NAME).read_text())
    index["weight_map"] = {f"t{number}": f"f{number}.safetensors" for number in range(num_files)}
    (published.path(2) / INDEX_NAME).write_text(json.dumps(index))
    told = pull(service, published.directory, 2)
    assert f"has {num_files + 1} files; an update has at most {MAX_UPDATE_FILES}" in told["message"]
    del index["metadata"]
    (published.path(3) / INDEX_NAME).write_text(json.dumps(index))
    told = pull(service, published.directory, 3)
    assert not told["success"]


def test_an_index_that_is_too_large_is_not_read(service: LiveService, published: Published) -> None:
    with (published.path(1) / INDEX_NAME).open("wb") as file:
        file.truncate(MAX_INDEX_BYTES + 1)
    for told in (
        pull(service, published.directory, 1),
        outcome(service, "/update_weights_from_disk", {"model_path": str(published.path(1)), "weight_version": 1}),
    ):
        assert f"is larger than {MAX_INDEX_BYTES} bytes" in told["message"]


def test_a_version_that_too_many_lead_to_is_refused(service: LiveService, published: Published) -> None:
    published.full(1)
    published.delta(2)
    index = json.loads((published.path(2) / INDEX_NAME).read_text())
    for number in range(3, MAX_VERSIONS + 3):
        index["metadata"] |= {"version": f"{number:06d}", "base_version": f"{number - 1:06d}"}
        (published.path(number) / INDEX_NAME).write_text(json.dumps(index))
    assert "publish a full version" in pull(service, published.directory, MAX_VERSIONS + 2)["message"]


def test_a_pickle_and_a_file_elsewhere_are_refused_by_name_before_anything_is_opened(
    service: LiveService, published: Published
) -> None:
    published.full(1)
    for name in ("pytorch_model.bin", "../outside.safetensors", "a.safetensors.bin", "", "..", "a\0.safetensors"):
        (published.path(1) / "model.safetensors").unlink(missing_ok=True)
        (published.path(1) / INDEX_NAME).write_text(json.dumps({"weight_map": {"embed.weight": name}}))
        body: dict[str, object] = {"model_path": str(published.path(1)), "weight_version": 1}
        told = outcome(service, "/update_weights_from_disk", body)
        assert not told["success"]
        assert "names" in told["message"] or "this is not a valid file name" in told["message"], told


# Every name that a directory of JSON can hold: also those that no file, or no update, can have.
_NAMES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="ab./\\\0~*%\u202e ", max_size=8),
    st.sampled_from(["a", "a.part", ".", "..", "/", "a" * 300, "update.json", "lock", "files", ".hidden"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(_NAMES, min_size=1, max_size=4), field=st.sampled_from(["weight_map", "directory", "config"]))
def test_no_name_is_a_bug_of_the_service(
    service: LiveService, published: Published, names: list[str], field: str
) -> None:
    path = published.path(1)
    for old in path.iterdir():
        old.unlink()
    weight_map = {f"t{index}": name for index, name in enumerate(names)}
    if field == "config":
        (path / "config.json").write_text(json.dumps({"transformers_weights": names[0]}))
    metadata = {"version": "000001", "base_version": "000000", "delta_encoding": "overwrite"}
    metadata |= {"compression_format": "zstd", "checksum_format": "xxh3-128"}
    for index in ({"weight_map": weight_map}, {"weight_map": weight_map, "metadata": metadata}):
        (path / INDEX_NAME).write_text(json.dumps(index))
        source = "/".join(names) if field == "directory" else str(published.directory)
        model_path = "/".join(names) if field == "directory" else str(path)
        assert not pull(service, source, 1)["success"]
        body: dict[str, object] = {"model_path": model_path, "weight_version": 1}
        assert not outcome(service, "/update_weights_from_disk", body)["success"]
