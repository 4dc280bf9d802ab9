"""Groups of trainers that send samples without a name: those of one prompt belong together.

Such callers send a sample again only after they gave up on the first try, so a sample whose caller leaves is taken out
of its group again.
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
    """A group that is not whole: its name, and the indices that are taken."""

    key: _Key
    name: str = field(default_factory=lambda: f"prompt/{uuid.uuid4().hex}")
    taken: set[int] = field(default_factory=set[int])


class PromptGroups:
    """Gives each sample a place in a group of its prompt, and opens another group when all places are taken."""

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
            # A refusal may be of this sample alone, as of a full queue: others of its group may be on their way.
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
        """Let no further sample into the group: it was answered, it failed, or no sample is in it."""
        others = [other for other in self._groups[group.key] if other is not group]
        if others:
            self._groups[group.key] = others
        else:
            self._groups.pop(group.key)
