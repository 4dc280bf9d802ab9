"""Modules that run another forward for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def running_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None]:
    """Let each module run its forward of these, and restore its own afterwards.

    That is its class's, or the instance's where it has one: accelerate's hooks, and code that patches a model, put a
    forward there.
    """
    own = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
