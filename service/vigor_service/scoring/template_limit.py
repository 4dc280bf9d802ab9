"""Limits the steps and the output of a chat template, which is a program.

Jinja has no such limits, and a thread that renders cannot be stopped from outside. So a trace function counts steps, on
this thread only and only while the template runs (docs/decisions/0056-templates-are-counted.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from vigor_service.errors import ServiceError
from vigor_service.threads.work_limit import checkpoint

MAX_STEPS = 1_000_000
"""Maximum number of steps of one rendering, which takes a few seconds. A chat of 400 messages needs about 15,000."""

_TEMPLATE_FILE = "<template>"  # Jinja's file name for the code of a template
_STEPS_BETWEEN_CHECKPOINTS = 4096
_R = TypeVar("_R")


class TemplateLimitError(Exception):
    """The template was stopped at a limit; the message names the limit."""


class _Stop(BaseException):
    """Stops the template. A BaseException, because the template and Jinja catch at most ``Exception``."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def within_limits(render: Callable[[], _R], *, max_characters: int, max_steps: int = MAX_STEPS) -> _R:
    """Return what ``render`` returns. A step is a line of the template, or a call of a Python function.

    ``max_characters`` limits the output of the template and of its macros together, so the output of a macro counts
    again where it is used. A single operation, such as ``"a" * n``, is one step whatever it costs.

    Raises:
        TemplateLimitError: the template took more steps, or wrote more characters.
        ServiceError: as ``checkpoint``.
    """
    counter, others = _Counter(max_steps, max_characters), sys.gettrace()
    sys.settrace(counter.on_call)
    try:
        return render()
    except _Stop as stop:
        raise stop.reason from stop
    finally:
        sys.settrace(others)


class _Counter:
    """The trace function of one rendering."""

    def __init__(self, max_steps: int, max_characters: int) -> None:
        self._num_steps = 0
        self._max_steps = max_steps
        self._num_characters = 0
        self._max_characters = max_characters

    def on_call(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:  # noqa: ARG002 - signature of sys.settrace
        """Count a call of any function, and trace the lines of functions of the template only."""
        self._count_step()
        return self._on_event if frame.f_code.co_filename == _TEMPLATE_FILE else None

    def _on_event(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:  # noqa: ARG002
        if event == "line":
            self._count_step()
        elif event == "return" and isinstance(arg, str):  # traced for each part that the template yields too
            self._num_characters += len(arg)
            if self._num_characters > self._max_characters:
                raise _Stop(TemplateLimitError(f"it writes more than {self._max_characters} characters"))
        return self._on_event

    def _count_step(self) -> None:
        self._num_steps += 1
        if self._num_steps > self._max_steps:
            raise _Stop(TemplateLimitError(f"it takes more than {self._max_steps} steps"))
        if self._num_steps % _STEPS_BETWEEN_CHECKPOINTS == 0:
            try:
                checkpoint()
            except ServiceError as error:
                raise _Stop(error) from error
