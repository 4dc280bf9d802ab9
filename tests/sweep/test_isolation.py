"""A model that hangs or dies is one line of the sweep."""

from __future__ import annotations

import os
import signal

import pytest

from tests.sweep.isolation import DiedError, in_own_process


def _double(number: int) -> int:
    return 2 * number


def _wait(_number: int) -> None:
    signal.pause()


def _die(status: int) -> None:
    os._exit(status)


def test_a_result_comes_back() -> None:
    assert in_own_process(_double, 21, 60) == 42


def test_a_function_that_does_not_end_is_ended() -> None:
    with pytest.raises(DiedError, match="no result after 2 s"):
        in_own_process(_wait, 0, 2)


def test_a_process_that_dies_is_told_from_one_that_hangs() -> None:
    with pytest.raises(DiedError, match="the process ended with 3"):
        in_own_process(_die, 3, 60)
