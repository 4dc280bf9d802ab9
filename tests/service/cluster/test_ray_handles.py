"""What is said where Ray is not there, or no cluster of it."""

from __future__ import annotations

import pytest

from vigor_service.cluster.ray_handles import RayCluster
from vigor_service.errors import StartupError


class RayWithoutCluster:
    """As Ray, where nothing answers at the address."""

    def init(self, **_settings: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")


class NotedRay:
    """Notes what it is started with."""

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}

    def init(self, **settings: object) -> None:
        self.settings = settings


def no_ray() -> object:
    raise ModuleNotFoundError("No module named 'ray'", name="ray")


def test_without_ray_it_says_what_to_install() -> None:
    with pytest.raises(StartupError, match=r"need Ray: pip install '\.\[service,ray\]' in a checkout"):
        RayCluster(None, load_ray=no_ray, environment={})


def test_an_address_without_a_cluster_is_named() -> None:
    said = r"^--ray-address auto: cannot join a Ray cluster there: Could not find any running Ray instance\.$"
    with pytest.raises(StartupError, match=said):
        RayCluster("auto", load_ray=RayWithoutCluster, environment={})


def test_a_cluster_of_its_own_that_does_not_start_is_said() -> None:
    with pytest.raises(StartupError, match=r"^cannot start Ray: Could not"):
        RayCluster(None, load_ray=RayWithoutCluster, environment={})


@pytest.mark.parametrize(("address", "place"), [(None, "local"), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_without_an_address_it_starts_a_cluster_whatever_others_there_are(address: str | None, place: str) -> None:
    ray = NotedRay()
    RayCluster(address, load_ray=lambda: ray, environment={})
    assert ray.settings["address"] == place
