"""Publishing in the background."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch

from tests.trainer.fake_service import FakeService
from vigor_client import Broadcast, SharedDirectory, VigorError, WeightSnapshot, WeightTransport
from vigor_trainer.weights.publisher import Publisher

WEIGHTS = {"weight": torch.ones(2)}
PATIENCE_SECONDS = 10


def slow_service() -> tuple[FakeService, Event]:
    """A service that publishes only when it is let."""
    service, may_end = FakeService(), Event()

    def wait(_: int) -> None:
        assert may_end.wait(PATIENCE_SECONDS)

    service.on_publish = wait
    return service, may_end


def test_publishing_does_not_hold_up_whoever_begins_it() -> None:
    service, may_end = slow_service()
    with Publisher(service) as publisher:
        publisher.begin(lambda: WEIGHTS, 3)
        assert service.sent_versions == []
        may_end.set()
        assert publisher.at(3).weight_version == 3
        assert publisher.at(3).weight_version == 3, "several requests may use one publication"


def test_one_snapshot_serves_all_publications() -> None:
    service, snapshot = FakeService(), WeightSnapshot()
    with Publisher(service, snapshot) as publisher:
        for version in (1, 2):
            publisher.begin(lambda: WEIGHTS, version)
            publisher.finish()
    assert service.snapshots == [snapshot, snapshot]


@pytest.mark.parametrize("transport", [None, SharedDirectory(Path("shared")), Broadcast(host="10.0.0.5")])
def test_every_publication_goes_the_way_that_was_chosen(transport: WeightTransport | None) -> None:
    service = FakeService()
    with Publisher(service, transport=transport) as publisher:
        for version in (1, 2):
            publisher.begin(lambda: WEIGHTS, version)
            publisher.finish()
    assert service.ways == [transport, transport]


def test_what_stopped_a_publication_is_raised_where_it_is_waited_for() -> None:
    def refuse(version: int) -> None:
        raise ConnectionError(f"no room for version {version}")

    service = FakeService()
    service.on_publish = refuse
    with Publisher(service) as publisher:
        publisher.begin(lambda: WEIGHTS, 3)
        with pytest.raises(ConnectionError, match="version 3"):
            publisher.at(3)


def test_there_is_nothing_to_wait_for_before_a_beginning() -> None:
    with Publisher(FakeService()) as publisher, pytest.raises(VigorError, match="begin"):
        publisher.finish()


def test_leaving_waits_for_a_publication_under_way() -> None:
    service, may_end = slow_service()
    with Publisher(service) as publisher:
        publisher.begin(lambda: WEIGHTS, 1)
        may_end.set()
    assert service.sent_versions == [1]


def test_weights_of_a_step_are_published_once_until_they_are_forgotten() -> None:
    service = FakeService()
    with Publisher(service) as publisher:
        for _ in range(2):
            publisher.begin(lambda: WEIGHTS, 3)
        publisher.forget()
        publisher.begin(lambda: WEIGHTS, 3)
        publisher.finish()
    assert service.asked_versions == [3, 3]


def test_a_publication_is_only_found_by_its_step() -> None:
    with Publisher(FakeService()) as publisher:
        with pytest.raises(VigorError, match="the weights of step 3 are not published, none were"):
            publisher.at(3)
        publisher.begin(lambda: WEIGHTS, 3)
        with pytest.raises(VigorError, match="the weights of step 4 are not published, those of step 3 were last"):
            publisher.at(4)
