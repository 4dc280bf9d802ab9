"""A model that was checked is not checked again; any other is, and what cannot be read or kept is no error."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tests.engine.cases import difficult_sequences, largest_error
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms import layout_choice
from vigor_service.engine.norms.check_cache import CheckCache, Outcome, outcome_key

BEFORE = "this model was checked before"


def start(directory: Path, *, parameters: str | None = None, scale: float = 1.0) -> Engine:
    model = tiny_model("qwen3")
    with torch.no_grad():
        model.model.norm.weight.mul_(scale)
    return Engine(model, name="tiny", parameters=parameters, check_cache=CheckCache(directory), method="rules")


def test_the_same_model_is_checked_once_and_scored_alike(tmp_path: Path) -> None:
    first = start(tmp_path)
    with patch.object(layout_choice, "check", side_effect=AssertionError("checked again")):
        second = start(tmp_path)
    assert second.info == first.info
    pair = [engine.score(difficult_sequences()).scores for engine in (first, second)]
    assert largest_error(*pair) <= 1e-6


@pytest.mark.parametrize("other", [{"parameters": "norms"}, {"scale": 1.5}])
def test_another_model_or_selection_is_checked(
    other: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    with caplog.at_level(logging.INFO):
        start(tmp_path, **other)  # pyright: ignore[reportArgumentType] - one of its options
    assert BEFORE not in caplog.text


def test_a_model_that_only_the_reference_scores_is_remembered_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        model = tiny_model("llama")
        model.lm_head = nn.Sequential(model.lm_head)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            engine = Engine(model, name="tiny", check_cache=CheckCache(tmp_path))
        assert "scoring one sequence at a time: the output head is a Sequential" in caplog.text
        assert list(engine.info.rules) == ["exact"]
    assert BEFORE in caplog.text


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"layout": "diagonal"}', '{"layout": "packed", "max_tokens": "9"}']
)
def test_an_outcome_that_cannot_be_read_is_none(content: str, tmp_path: Path) -> None:
    cache = CheckCache(tmp_path)
    cache.write("key", Outcome("packed", 100, layers_run_twice=True))
    assert cache.read("key") == Outcome("packed", 100, layers_run_twice=True)
    (tmp_path / "key.json").write_text(content)
    assert cache.read("key") is None
    assert cache.read("another") is None


def test_a_directory_that_cannot_be_written_to_is_told_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.INFO):
        start(tmp_path / "file" / "checks")
    assert "cannot store the outcome of the self-check" in caplog.text


def test_old_outcomes_go(tmp_path: Path) -> None:
    cache = CheckCache(tmp_path)
    for number in range(260):
        cache.write(f"key{number}", Outcome("packed"))
    assert len(list(tmp_path.iterdir())) == 256
    assert cache.read("key259") == Outcome("packed")


def test_the_key_is_the_same_in_every_process_of_one_model() -> None:
    keys = {outcome_key(model, measured_parameters(model)) for model in (tiny_model("gpt2"), tiny_model("gpt2"))}
    assert len(keys) == 1
