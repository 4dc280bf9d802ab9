"""Whether there is a model at a place, with real files, a real hub that has little, and one that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, fake_hub
from vigor_client.errors import ModelSourceError
from vigor_client.models.model_source import require_model

ASK = """
import json, sys
from vigor_client.errors import ModelSourceError
from vigor_client.models.hub import require_on_hub
try:
    require_on_hub(sys.argv[1], kind=sys.argv[2], hint="; did you mean another?")
except ModelSourceError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(None))
"""
STATUSES = {
    "/api/models/some/model": 200,
    "/api/datasets/some/data": 200,
    "/api/models/some/asks-for-a-token": 401,
    "/api/models/some/broken": 503,
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub(STATUSES) as hub:
        yield hub


def _ask(name: str, kind: str, home: Path, **environment: str) -> str | None:
    """Return what is said of a name, in a process of its own: the hub's library reads its variables once."""
    kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("HF_")}
    answer = subprocess.run(
        [sys.executable, "-c", ASK, name, kind],
        env={**kept, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    ("name", "kind"), [("some/model", "model"), ("some/data", "dataset"), ("some/broken", "model")]
)
def test_what_the_hub_has_or_cannot_tell_is_left_to_the_library_that_loads(
    hub: FakeHub, tmp_path: Path, name: str, kind: str
) -> None:
    assert _ask(name, kind, tmp_path, HF_ENDPOINT=hub.url) is None


@pytest.mark.parametrize("name", ["some/typo", "some/asks-for-a-token"])
def test_what_the_hub_does_not_have_is_refused_by_name(hub: FakeHub, tmp_path: Path, name: str) -> None:
    assert _ask(name, "model", tmp_path, HF_ENDPOINT=hub.url) == (
        f"{name}: there is no such model, here or on the hub {hub.url}; if it is private, set HF_TOKEN; "
        "did you mean another?"
    )


def test_the_hub_is_asked_with_the_token_that_its_library_would_send(hub: FakeHub, tmp_path: Path) -> None:
    hub.authorizations.clear()
    _ask("some/model", "model", tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    _ask("some/model", "model", tmp_path, HF_ENDPOINT=hub.url)
    assert hub.authorizations == ["Bearer hf_secret", None]


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    answer = _ask("some/model", "model", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert answer is not None
    assert "no such model on this machine, and the hub http://127.0.0.1:9 cannot be reached (" in answer


@pytest.mark.parametrize(
    ("kind", "copy"),
    [
        ("model", "hub/models--some--model/snapshots"),
        ("dataset", "hub/datasets--some--model/snapshots"),
        ("dataset", "datasets/some___model"),
    ],
)
def test_a_copy_on_this_machine_needs_no_hub(tmp_path: Path, kind: str, copy: str) -> None:
    assert _ask("some/model", kind, tmp_path, HF_HUB_OFFLINE="1") == (
        f"some/model: HF_HUB_OFFLINE is set, and this machine has no copy of such a {kind}; did you mean another?"
    )
    (tmp_path / copy).mkdir(parents=True)
    assert _ask("some/model", kind, tmp_path, HF_HUB_OFFLINE="1") is None


def test_what_cannot_be_a_name_is_refused_without_a_question() -> None:
    with pytest.raises(
        ModelSourceError, match=r"^we ird: there is no such directory, and no model of the hub has such"
    ):
        require_model("we ird")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_directory_with_a_configuration_is_a_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    require_model(str(tmp_path))


def test_a_gguf_file_is_a_model_and_another_file_is_none(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    require_model(str(gguf))
    with pytest.raises(ModelSourceError, match=f"did you mean {gguf}\\?$"):
        require_model(str(tmp_path / "modle.gguf"))
    with pytest.raises(ModelSourceError, match=f"did you mean {gguf}\\?$"):
        require_model(str(tmp_path))
    other = gguf.rename(tmp_path / "model.bin")
    with pytest.raises(ModelSourceError, match=f"^{other} is a file; give the directory that holds the model"):
        require_model(str(other))


def test_a_directory_of_checkpoints_names_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-100/config.json").touch()
    with pytest.raises(ModelSourceError, match=f"did you mean {tmp_path / 'checkpoint-100'}\\?$"):
        require_model(str(tmp_path))
