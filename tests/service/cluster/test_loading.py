"""What an engine asks Ray for."""

from __future__ import annotations

import pytest

from vigor_service.cluster.loading import gpus_per_engine


@pytest.mark.parametrize(
    ("device", "cluster_has_gpus", "num_gpus"),
    [("cuda", False, 1), ("cuda:1", True, 1), ("auto", True, 1), ("auto", False, 0), ("cpu", True, 0)],
)
def test_an_engine_asks_for_a_gpu_where_one_is_named_or_there(
    device: str, cluster_has_gpus: bool, num_gpus: int
) -> None:
    assert gpus_per_engine(device, cluster_has_gpus=cluster_has_gpus) == num_gpus
