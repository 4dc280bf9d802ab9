"""Temporary replacement of modules' forwards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def running_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None]:
    """Within this context, run each module by its forward in ``forwards``; restore its own forward afterwards.

    The own forward is the class's, or the instance's if it has one: accelerate's hooks, and code that patches a model,
    set a forward on the instance.
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
