from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_client.integrations.trl.group_slices import Part, parts_of_slice


def test_a_slice_of_whole_groups_has_whole_parts() -> None:
    parts = parts_of_slice(8, group_size=4, rank=1, num_processes=2)
    assert parts == [Part(group=2, first=0, start=0, stop=4), Part(group=3, first=0, start=4, stop=8)]


def test_a_slice_may_begin_and_end_within_groups() -> None:
    parts = parts_of_slice(6, group_size=4, rank=1, num_processes=2)
    assert parts == [Part(group=1, first=2, start=0, stop=2), Part(group=2, first=0, start=2, stop=6)]


def test_a_group_may_be_larger_than_a_slice() -> None:
    assert parts_of_slice(4, group_size=16, rank=2, num_processes=4) == [Part(group=0, first=8, start=0, stop=4)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_the_parts_of_all_processes_are_every_index_of_every_group_once(
    group_size: int, num_groups: int, num_processes: int
) -> None:
    num_samples = group_size * num_groups  # of each process, so that all together are whole groups
    held = [
        (part.group, part.first + offset)
        for rank in range(num_processes)
        for part in parts_of_slice(
            num_samples, group_size=group_size * num_processes, rank=rank, num_processes=num_processes
        )
        for offset in range(part.stop - part.start)
    ]
    assert held == [(group, index) for group in range(num_groups) for index in range(group_size * num_processes)]


def test_what_is_no_whole_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="3 completions in each of 2 processes are not whole groups of 4"):
        parts_of_slice(3, group_size=4, rank=0, num_processes=2)
