"""slime's group reward, on samples with the fields of `slime/utils/types.py` at slime 624b824 (2026-08)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from tests.client.integrations.gathering_service import GatheringService, gathering_service
from tests.support.live_service import live_service
from vigor_client.integrations.slime import vigor_group_reward


@dataclass
class Sample:
    """The fields that are read, with slime's defaults, and some that are not."""

    class Status(Enum):
        PENDING = "pending"
        COMPLETED = "completed"
        TRUNCATED = "truncated"
        ABORTED = "aborted"
        FAILED = "failed"

    group_index: int | None = None
    index: int | None = None
    prompt: str | list[dict[str, str]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: str | None = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    status: Status = Status.PENDING


@dataclass
class Arguments:
    rm_url: str | None


def finished(*response: int, prompt: tuple[int, ...] = (1, 2), **fields: Any) -> Sample:  # noqa: ANN401 - of Sample
    given = {"status": Sample.Status.COMPLETED, "group_index": 4, **fields}
    return Sample(tokens=[*prompt, *response], response_length=len(response), **given)


def rewards(url: str | None, samples: list[Sample]) -> list[float]:
    return asyncio.run(vigor_group_reward(Arguments(url), samples))


@pytest.fixture
def service() -> Iterator[GatheringService]:
    with gathering_service() as running:
        yield running


def test_a_group_is_sent_as_it_was_sampled(service: GatheringService) -> None:
    samples = [
        finished(9, 9),
        finished(5, 6, 7, status=Sample.Status.TRUNCATED, loss_mask=[1, 0, 1]),
        finished(3),
        finished(),
    ]
    assert rewards(service.url, samples) == pytest.approx([-2 / 3, -2 / 3, 1 / 3, 1])
    [group] = service.requests[0].groups
    assert group.prompt_ids == [1, 2]
    assert [completion.ids for completion in group.completions] == [[9, 9], [5, 6, 7], [3], []]
    assert [completion.mask for completion in group.completions] == [None, [1, 0, 1], None, None]
    assert [completion.finish_reason for completion in group.completions] == ["stop", "length", "stop", "stop"]


def test_the_real_application_ranks_the_group() -> None:
    with live_service(None) as service:
        answer = rewards(str(service.http.base_url), [finished(3, 4), finished(5), finished(6, 7, 8)])
    assert sorted(answer) == [-1, 0, 1]


def test_the_url_may_come_from_the_environment(service: GatheringService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGOR_URL", service.url)
    assert rewards(None, [finished(3), finished(4)]) == [1, -1]
    monkeypatch.delenv("VIGOR_URL")
    with pytest.raises(ValueError, match="Give --rm-url, or set VIGOR_URL"):
        rewards(None, [finished(3)])


@pytest.mark.parametrize("status", [Sample.Status.PENDING, Sample.Status.ABORTED, Sample.Status.FAILED])
def test_a_group_with_an_unfinished_response_is_refused(status: Sample.Status, service: GatheringService) -> None:
    with pytest.raises(ValueError, match=f"a response of group 4 is {status.value}"):
        rewards(service.url, [finished(3), finished(4, status=status)])
    assert service.requests == []


def test_responses_to_different_prompts_are_refused(service: GatheringService) -> None:
    with pytest.raises(ValueError, match="group 4 mixes completions of different prompts"):
        rewards(service.url, [finished(3), finished(4, prompt=(1, 3))])
