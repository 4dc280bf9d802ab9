"""Products are computed by the library that was faster for their class, on this machine, and what was found is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vigor_service.engine.ops.library_choice import MAX_CLASSES, TRIES, LibraryChoice, product_class

WORK = "128x576x1536"
RESULT = torch.zeros(())


class Libraries:
    """Fake libraries: each product takes its library's seconds on a simulated clock. ``called`` lists them in order."""

    def __init__(self, **seconds: float) -> None:
        self.called: list[str] = []
        self._seconds = seconds
        self._now = 0.0

    def clock_seconds(self) -> float:
        return self._now

    def products(self) -> dict[str, Callable[[], Tensor]]:
        return {name: lambda name=name: self._multiply(name) for name in self._seconds}

    def _multiply(self, name: str) -> Tensor:
        self.called.append(name)
        self._now += self._seconds[name]
        return RESULT


def multiply(choice: LibraryChoice, libraries: Libraries, times: int, *, work: str = WORK) -> Sequence[str]:
    before = len(libraries.called)
    for _ in range(times):
        assert choice.run(work, 100, libraries.products()) is RESULT
    return libraries.called[before:]


def found_before(directory: Path) -> tuple[Libraries, Path]:
    """Find, with this directory, that ``b`` is the faster one; return the libraries and the file."""
    choice = LibraryChoice((libraries := Libraries(a=2.0, b=1.0)).clock_seconds)
    choice.keep_in(directory)
    multiply(choice, libraries, 2 * TRIES)
    (kept,) = directory.iterdir()
    return libraries, kept


@pytest.mark.parametrize(("seconds", "faster"), [({"a": 2.0, "b": 1.0}, "b"), ({"a": 1.0, "b": 2.0}, "a")])
def test_a_slow_library_is_avoided_once_each_has_had_its_turns(seconds: dict[str, float], faster: str) -> None:
    libraries = Libraries(**seconds)
    choice = LibraryChoice(libraries.clock_seconds)
    assert multiply(choice, libraries, 2 * TRIES) == ["a", "b"] * TRIES
    assert multiply(choice, libraries, 20) == [faster] * 20
    assert choice.counts() == {faster: 1}


def test_each_class_has_a_choice_of_its_own() -> None:
    choice = LibraryChoice((libraries := Libraries(a=1.0, b=2.0)).clock_seconds)
    multiply(choice, libraries, 2 * TRIES)
    other = "128x1536x576T"
    assert multiply(choice, libraries, 2, work=other) == ["a", "b"]


def test_more_classes_than_are_kept_are_not_tried() -> None:
    choice = LibraryChoice((libraries := Libraries(a=2.0, b=1.0)).clock_seconds)
    for inputs in range(MAX_CLASSES):
        multiply(choice, libraries, 1, work=f"8x{inputs}x8")
    assert multiply(choice, libraries, 3 * TRIES) == ["a"] * 3 * TRIES


def test_a_library_that_is_forced_computes_everything() -> None:
    choice = LibraryChoice((libraries := Libraries(a=1.0, b=2.0)).clock_seconds)
    choice.forced = "b"
    assert multiply(choice, libraries, 20) == ["b"] * 20


def test_what_was_found_is_kept_for_this_machine(tmp_path: Path) -> None:
    libraries, kept = found_before(tmp_path)
    second = LibraryChoice(libraries.clock_seconds)
    second.keep_in(tmp_path)
    assert multiply(second, libraries, 3) == ["b"] * 3
    content = json.loads(kept.read_text())
    assert content["chosen"] == {"128x576x1536": "b"}
    assert torch.backends.cpu.get_cpu_capability() in content["machine"]


def test_what_a_thread_finds_is_kept_for_the_machine_though_it_has_threads_of_its_own(tmp_path: Path) -> None:
    choice = LibraryChoice((libraries := Libraries(a=2.0, b=1.0)).clock_seconds)
    choice.keep_in(tmp_path)

    def find() -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)
        multiply(choice, libraries, 2 * TRIES)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(find).result()
    again = LibraryChoice(libraries.clock_seconds)
    again.keep_in(tmp_path)
    assert again.counts() == {"b": 1}


@pytest.mark.parametrize("content", ["", "[]", '{"machine": "another", "chosen": {"128x576x1536": "b"}}'])
def test_a_file_of_another_machine_or_that_cannot_be_read_counts_as_missing(content: str, tmp_path: Path) -> None:
    libraries, kept = found_before(tmp_path)
    kept.write_text(content)
    second = LibraryChoice(libraries.clock_seconds)
    second.keep_in(tmp_path)
    assert multiply(second, libraries, 2) == ["a", "b"]


def test_a_library_that_is_not_known_is_not_taken_from_a_file(tmp_path: Path) -> None:
    libraries, kept = found_before(tmp_path)
    kept.write_text(kept.read_text().replace('"b"', '"c"'))
    second = LibraryChoice(libraries.clock_seconds)
    second.keep_in(tmp_path)
    assert multiply(second, libraries, 2 * TRIES + 2) == ["a", "b"] * TRIES + ["b", "b"]


def test_a_directory_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    choice = LibraryChoice((libraries := Libraries(a=2.0, b=1.0)).clock_seconds)
    choice.keep_in(tmp_path / "file")
    assert multiply(choice, libraries, 3 * TRIES)[-1] == "b"


def test_a_class_has_rows_up_to_a_power_of_two_and_says_how_the_matrix_lies() -> None:
    weight_OI = torch.empty(3, 5)
    assert product_class(65, weight_OI) == product_class(128, weight_OI) == "128x5x3"
    assert product_class(129, weight_OI.T) == "256x3x5T"
