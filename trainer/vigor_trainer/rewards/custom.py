"""Rewards written by the user: a function with TRL's signature, given as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigor_trainer.errors import UnsupportedSettingError


@dataclass(frozen=True, slots=True)
class CustomReward:
    """``function`` takes TRL's columns by name and returns one number, or None, per completion."""

    name: str
    function: Callable[..., list[float | None]]


def load_reward(place: str) -> CustomReward:
    """Import and return the function at `module:function`; the working directory is searched for modules too.

    Raises:
        UnsupportedSettingError: the function does not exist, or it is a coroutine function.
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise UnsupportedSettingError(f"--reward {place}: neither a reward of vigor-trainer nor module:function")
    function: Callable[..., list[float | None]] | None = getattr(_module(module_name, place), name, None)
    if not callable(function):
        raise UnsupportedSettingError(f"--reward {place}: the module has no function {name}")
    if inspect.iscoroutinefunction(function):
        raise UnsupportedSettingError(f"--reward {place}: it is a coroutine function; give one that returns numbers")
    return CustomReward(name, function)


def _module(name: str, place: str) -> Any:  # noqa: ANN401 - any module
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing the user's module may raise anything
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UnsupportedSettingError(f"--reward {place}: the module cannot be imported: {said}") from error
