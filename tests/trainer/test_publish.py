"""Publishing in the background."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event

import pytest
import torch

from tests.trainer.fake_service import FakeService
from vigor_client import Publication, WeightSnapshot
from vigor_trainer.publish import Publisher

WEIGHTS = {"weight": torch.ones(2)}
PATIENCE_SECONDS = 10


class SlowService(FakeService):
    """Publishes only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = Event()

    def publish_weights(
        self, tensors: Mapping[str, torch.Tensor], *, weight_version: int, snapshot: WeightSnapshot | None = None
    ) -> Publication:
        assert self.may_end.wait(PATIENCE_SECONDS)
        return super().publish_weights(tensors, weight_version=weight_version, snapshot=snapshot)


class RefusingService(FakeService):
    def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,  # noqa: ARG002 - as VigorClient's
    ) -> Publication:
        raise ConnectionError(f"no room for {len(tensors)} tensors of version {weight_version}")


def test_publishing_does_not_hold_up_whoever_begins_it() -> None:
    service = SlowService()
    with Publisher(service) as publisher:
        publisher.begin(WEIGHTS, 3)
        assert service.sent_versions == []
        service.may_end.set()
        assert publisher.wait().weight_version == 3
        assert publisher.wait().weight_version == 3, "several requests may use one publication"


def test_one_snapshot_serves_all_publications() -> None:
    seen: list[WeightSnapshot | None] = []

    class Watched(FakeService):
        def publish_weights(
            self, tensors: Mapping[str, torch.Tensor], *, weight_version: int, snapshot: WeightSnapshot | None = None
        ) -> Publication:
            seen.append(snapshot)
            return super().publish_weights(tensors, weight_version=weight_version, snapshot=snapshot)

    snapshot = WeightSnapshot()
    with Publisher(Watched(), snapshot) as publisher:
        for version in (1, 2):
            publisher.begin(WEIGHTS, version)
            publisher.wait()
    assert seen == [snapshot, snapshot]


def test_what_stopped_a_publication_is_raised_where_it_is_waited_for() -> None:
    with Publisher(RefusingService()) as publisher:
        publisher.begin(WEIGHTS, 3)
        with pytest.raises(ConnectionError, match="version 3"):
            publisher.wait()


def test_there_is_nothing_to_wait_for_before_a_beginning() -> None:
    with Publisher(FakeService()) as publisher, pytest.raises(RuntimeError, match="begin"):
        publisher.wait()


def test_leaving_waits_for_a_publication_under_way() -> None:
    service = SlowService()
    with Publisher(service) as publisher:
        publisher.begin(WEIGHTS, 1)
        service.may_end.set()
    assert service.sent_versions == [1]
