"""Groups for trainers that send samples without a group name: samples of one prompt belong together.

Such callers repeat a sample only after they have given up on the first try, so a sample whose caller disconnects is
removed from its group.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from dataclasses import dataclass, field

from vigor_client.schemas.scoring import SampleResponse
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import ServiceError
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.sample_groups.samples import Sample

_Key = tuple[tuple[int, ...], int]


@dataclass(slots=True, eq=False)
class _Group:
    """An incomplete group: its name, and the indices that are taken."""

    key: _Key
    name: str = field(default_factory=lambda: f"prompt/{uuid.uuid4().hex}")
    taken: set[int] = field(default_factory=set[int])


class PromptGroups:
    """Gives each sample an index in a group of its prompt, and opens another group when all indices are taken."""

    def __init__(self, assembly: GroupAssembly) -> None:
        self._assembly = assembly
        self._groups: dict[_Key, list[_Group]] = defaultdict(list)

    async def score(self, sequence: TokenSequence, *, group_size: int) -> SampleResponse:
        """Return the sequence's score, ranked within ``group_size`` samples of its prompt.

        Raises as ``GroupAssembly.join``.
        """
        group = self._with_room((sequence.prompt_ids, group_size))
        index = min(set(range(group_size)) - group.taken)
        group.taken.add(index)
        try:
            response = await self._assembly.join(Sample(group.name, group_size, index, sequence))
        except (asyncio.CancelledError, ServiceError):
            # An error may concern this sample alone, such as a full queue: others of the group may still arrive.
            if self._assembly.withdraw(group.name, index):
                group.taken.discard(index)
            if len(group.taken) in (0, group_size):
                self._close(group)
            raise
        self._close(group)
        return response

    def _with_room(self, key: _Key) -> _Group:
        for group in self._groups[key]:
            if len(group.taken) < key[1]:
                return group
        self._groups[key].append(_Group(key))
        return self._groups[key][-1]

    def _close(self, group: _Group) -> None:
        """Add no further sample to the group: it was answered, it failed, or it has no sample."""
        others = [other for other in self._groups[group.key] if other is not group]
        if others:
            self._groups[group.key] = others
        else:
            self._groups.pop(group.key)
