"""Samples without a group, on a group assembly whose outcomes the test sets."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from vigor_client.schemas.scoring import SampleResponse
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import QueueFullError
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.sample_groups.by_prompt import PromptGroups
from vigor_service.sample_groups.samples import Sample


class FakeAssembly:
    """Remembers the samples; each waits until the test sets what it comes to."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.outcomes: list[asyncio.Future[SampleResponse]] = []

    async def join(self, sample: Sample) -> SampleResponse:
        self.samples.append(sample)
        self.outcomes.append(asyncio.get_running_loop().create_future())
        return await self.outcomes[-1]

    def withdraw(self, _name: str, _index: int) -> bool:
        return True


def _send(groups: PromptGroups, token_id: int) -> asyncio.Task[SampleResponse]:
    return asyncio.create_task(groups.score(TokenSequence((1, 2), (token_id,)), group_size=2))


async def test_a_sample_that_was_refused_alone_comes_back_to_those_that_were_not() -> None:
    assembly = FakeAssembly()
    groups = PromptGroups(cast("GroupAssembly", assembly))
    first, second = _send(groups, 3), _send(groups, 4)
    await asyncio.sleep(0)
    assembly.outcomes[0].set_exception(QueueFullError("come back later"))
    with pytest.raises(QueueFullError):
        await first
    again = _send(groups, 3)
    await asyncio.sleep(0)
    refused, waiting, returned = assembly.samples
    assert (returned.group, returned.index) == (waiting.group, refused.index)
    for task in (second, again):
        task.cancel()
    await asyncio.wait([second, again])


async def test_a_group_that_all_have_left_takes_nobody_in() -> None:
    assembly = FakeAssembly()
    groups = PromptGroups(cast("GroupAssembly", assembly))
    first = _send(groups, 3)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    second = _send(groups, 3)
    await asyncio.sleep(0)
    assert assembly.samples[1].group != assembly.samples[0].group
    second.cancel()
    await asyncio.wait([second])
