"""Large policies on paper: the arithmetic, and that it stands on results that are there."""

from __future__ import annotations

from math import log2

import pytest

from benchmarks.plan import (
    BATCH_TOKENS,
    GATHERS,
    GPU_BYTES,
    NETWORK_BYTES_PER_SECOND,
    NUM_MACHINES,
    NVLINK_BYTES_PER_SECOND,
    POLICIES,
    Policy,
    Rates,
    batch_seconds,
    main,
    measured,
    num_gpus,
    tokens_per_second,
)

RATES = Rates(
    flop_per_second=4e14,
    upload_bytes_per_second=4e8,
    verify_bytes_per_second=1e10,
    delta_verify_bytes_per_second=2e9,
    delta_share=0.03,
    front_tokens_per_second=1e6,
)


@pytest.mark.parametrize(("gigabytes", "gpus"), [(1, 1), (70, 1), (71, 2), (141, 2), (142, 4), (800, 16)])
def test_an_engine_has_as_many_gpus_as_hold_the_weights_in_half_of_their_memory(gigabytes: float, gpus: int) -> None:
    policy = Policy("policy", gigabytes * 1e9 / 2, 1e9)
    assert num_gpus(policy) == gpus
    assert policy.num_bytes / gpus <= GPU_BYTES / 2


def test_a_model_on_one_gpu_gathers_nothing() -> None:
    policy = Policy("policy", 1e9, 1e9)
    assert batch_seconds(policy, RATES) == (4 * 1e9 * BATCH_TOKENS / 4e14, 0.0)
    assert tokens_per_second(policy, RATES) == pytest.approx(1e5)  # 4e14 / (4 * 1e9)


@pytest.mark.parametrize(("parameters", "rate"), [(280e9, NVLINK_BYTES_PER_SECOND), (400e9, NETWORK_BYTES_PER_SECOND)])
def test_a_gather_brings_the_others_parts_over_the_slowest_link(parameters: float, rate: float) -> None:
    policy = Policy("policy", parameters, parameters)
    shard = num_gpus(policy)
    expected = GATHERS * 2 * parameters * (1 - 1 / shard) / rate
    assert batch_seconds(policy, RATES)[1] == pytest.approx(expected)


def test_the_plan_stands_on_results_that_were_measured() -> None:
    report = main([])
    rates = measured()
    for policy, row in zip(POLICIES, report.table("engines").rows, strict=True):
        assert row["policy"] == policy.name
        engines = rates.front_tokens_per_second / tokens_per_second(policy, rates)
        assert row["gpus_of_a_front"] == num_gpus(policy) * int(engines)
    for row in report.table("weights").rows:
        assert isinstance(gigabytes := row["gigabytes"], float)
        assert row["measured_seconds"] == pytest.approx(1e9 * gigabytes / rates.upload_bytes_per_second)
        assert row["fan_out_seconds"] == pytest.approx(log2(NUM_MACHINES) * gigabytes / 12.5)
