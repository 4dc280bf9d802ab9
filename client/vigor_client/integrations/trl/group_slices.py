"""Which completions of which groups one process holds: groups lie end to end across the slices of all processes.

Pure arithmetic: knows no trainer and no service.
"""

from __future__ import annotations

from dataclasses import dataclass

from vigor_client.integrations.groups import InvalidGroupError


@dataclass(frozen=True, slots=True)
class Part:
    """The completions of one group that one process holds: ``slice[start:stop]``.

    ``group`` counts the groups of all processes; ``first`` is the index within the group of the first of them.
    """

    group: int
    first: int
    start: int
    stop: int


def parts_of_slice(num_samples: int, *, group_size: int, rank: int, num_processes: int) -> list[Part]:
    """Return the parts of groups in the slice of process ``rank``, in order. Each process holds ``num_samples``.

    Raises:
        InvalidGroupError: the slices of all processes together do not make whole groups.
    """
    if num_samples * num_processes % group_size:
        raise InvalidGroupError(
            f"{num_samples} completions in each of {num_processes} processes are not whole groups of {group_size}: "
            "give num_generations the number that the trainer generates per prompt"
        )
    offset = rank * num_samples
    parts: list[Part] = []
    start = 0
    while start < num_samples:
        group, first = divmod(offset + start, group_size)
        stop = min(num_samples, start + group_size - first)
        parts.append(Part(group, first, start, stop))
        start = stop
    return parts
