"""Rewards that a user names as `module:function`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.rewards.custom import load_reward

MODULE = "rewards_of_a_user"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the module is written, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path / f"{MODULE}.py"
    sys.modules.pop(MODULE, None)
    sys.path[:] = path


def test_a_function_of_the_working_directory_is_found_under_its_name(module: Path) -> None:
    module.write_text("def short(completion_ids, **columns):\n    return [-len(ids) for ids in completion_ids]\n")
    reward = load_reward(f"{MODULE}:short")
    assert (reward.name, reward.function(completion_ids=[[1], [2, 3]])) == ("short", [-1, -2])


@pytest.mark.parametrize(
    ("place", "source", "said"),
    [
        (f"{MODULE}:", "", "neither a reward of vigor-trainer nor module:function"),
        (f"{MODULE}:missing", "", "the module has no function missing"),
        (f"{MODULE}:slow", "async def slow(**columns): ...\n", "it is a coroutine function"),
        (f"{MODULE}:short", "1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("no_such_module_anywhere:f", "", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_no_such_function_is_refused_by_name(module: Path, place: str, source: str, said: str) -> None:
    module.write_text(source)
    with pytest.raises(UnsupportedSettingError, match=said) as refused:
        load_reward(place)
    assert str(refused.value).startswith(f"--reward {place}: ")
