"""What a library refuses while a run is built is one line; what is a fault of a program stays a trace."""

from __future__ import annotations

import pytest
from safetensors import SafetensorError

from vigor_client import NotReadyError
from vigor_client.integrations.groups import InvalidGroupError
from vigor_trainer.building import building
from vigor_trainer.errors import InvalidModelError, UnsupportedSettingError


class TrackerError(Exception):
    """As a tracker has its own."""


@pytest.mark.parametrize(
    "error",
    [
        ImportError("bitsandbytes\n is missing"),
        FileExistsError(17, "File exists", "run"),
        KeyError("name"),
        NotImplementedError(),
        RuntimeError("needs a GPU"),
        SafetensorError("invalid header"),
        TrackerError("not logged in"),
        Exception("data did not match any variant"),
    ],
    ids=repr,
)
def test_a_refusal_is_one_line_that_says_what_was_built(error: Exception) -> None:
    with pytest.raises(UnsupportedSettingError) as caught, building("the trainer cannot be built"):
        raise error
    assert str(caught.value).startswith("the trainer cannot be built: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) > len("the trainer cannot be built: ")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [AttributeError("x"), AssertionError(), InvalidGroupError("x"), NotReadyError("x"), KeyboardInterrupt()]
)
def test_faults_and_errors_with_a_message_of_their_own_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, building("x"):
        raise error
    assert caught.value is error


def test_after_it_is_built_every_error_passes() -> None:
    with pytest.raises(ValueError, match="in the middle"), building("x", is_over=lambda: True):
        raise ValueError("in the middle")


def test_the_kind_may_be_another() -> None:
    with (
        pytest.raises(InvalidModelError, match="no tokenizer: broken"),
        building("no tokenizer", kind=InvalidModelError),
    ):
        raise ValueError("broken")
