"""How the tokens of a batch are measured, on a device that the test makes up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.out_of_memory import num_tokens
from vigor_service.engine.memory.token_budget import (
    _CPU_SIZES,
    _CUDA_SIZES,
    MAX_TRIAL_SECONDS,
    SAFE_SHARE,
    PeakMemory,
    TrialSizes,
    measure_batch_tokens,
    resident_peak,
    trial_sequences,
)
from vigor_service.engine.sequences import TokenSequence

SIZES = TrialSizes(first=100, last=800, max_batch=5000)


class FakeDevice:
    """Takes ``bytes_per_token`` for a batch, has room for ``fitting_tokens``, and a clock that goes by tokens."""

    def __init__(self, *, fitting_tokens: int = 10_000, bytes_per_token: int = 7, seconds_per_token: float = 0) -> None:
        self.fitting_tokens = fitting_tokens
        self.bytes_per_token = bytes_per_token
        self.seconds_per_token = seconds_per_token
        self.peak_bytes = 1_000_000
        self.now = 0.0
        self.probed: list[int] = []

    def fits(self, sequences: Sequence[TokenSequence]) -> bool:
        self.probed.append(num_tokens(sequences))
        self.now += self.seconds_per_token * self.probed[-1]
        self.peak_bytes = max(self.peak_bytes, 1_000_000 + self.bytes_per_token * self.probed[-1])
        return self.probed[-1] <= self.fitting_tokens

    def measure(self, *, free_bytes: int | None, is_peak_known: bool = True) -> int:
        return measure_batch_tokens(
            self.fits,
            sizes=SIZES,
            max_sequence_tokens=50,
            vocab_size=320,
            peak=PeakMemory(lambda: self.peak_bytes if is_peak_known else None, lambda: self.peak_bytes),
            free_bytes=free_bytes,
            seconds=lambda: self.now,
        )


def test_the_safe_share_of_the_free_memory_is_divided_by_the_bytes_of_a_token() -> None:
    device = FakeDevice(bytes_per_token=7)
    assert device.measure(free_bytes=21_000) == int(SAFE_SHARE * 21_000) // 7
    assert device.probed == [100, 200, 400, 800]


def test_however_much_memory_there_is_a_batch_has_an_upper_bound() -> None:
    assert FakeDevice().measure(free_bytes=2**50) == SIZES.max_batch


def test_however_little_there_is_the_smallest_probe_is_tried() -> None:
    assert FakeDevice().measure(free_bytes=0) == SIZES.first


def test_a_probe_that_does_not_fit_ends_the_measurement_and_the_one_before_is_the_answer() -> None:
    device = FakeDevice(fitting_tokens=300)
    assert device.measure(free_bytes=2**50) == 200
    assert device.probed == [100, 200, 400]


def test_after_a_slow_probe_none_follows() -> None:
    device = FakeDevice(seconds_per_token=MAX_TRIAL_SECONDS / 150)
    assert device.measure(free_bytes=21_000) == int(SAFE_SHARE * 21_000) // 7
    assert device.probed == [100, 200]


@pytest.mark.parametrize(("free_bytes", "is_peak_known"), [(None, True), (10, False)])
def test_what_cannot_be_measured_is_not_guessed_from(free_bytes: int | None, is_peak_known: bool) -> None:
    assert FakeDevice().measure(free_bytes=free_bytes, is_peak_known=is_peak_known) == SIZES.max_batch


def test_the_decision_is_one_line_with_its_inputs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        FakeDevice(bytes_per_token=7).measure(free_bytes=21_000)
    (record,) = caplog.records
    fields = {
        "max_batch_tokens": 1800,
        "most": 5000,
        "free_bytes": 21_000,
        "share": SAFE_SHARE,
        "bytes_per_token": 7,
        "trial_tokens": 800,
        "ran_out": False,
    }
    assert record.message == "batch_budget"
    assert vars(record).items() >= fields.items()


@pytest.mark.parametrize("total", [_CPU_SIZES.first, _CPU_SIZES.last, _CUDA_SIZES.first, _CUDA_SIZES.last])
@pytest.mark.parametrize("longest", [2, 17, 256, 100_000])
def test_probes_have_the_tokens_that_were_asked_for_and_are_distinct(total: int, longest: int) -> None:
    sequences = trial_sequences(total, max_sequence_tokens=longest, vocab_size=100_003)
    assert total - longest < num_tokens(sequences) <= total
    assert len(set(sequences)) == len(sequences)
    assert all(sequence.num_tokens <= longest for sequence in sequences)
    assert len({sequence.prompt_ids for sequence in sequences}) == (len(sequences) + 1) // 2


def test_the_resident_peak_is_unknown_where_it_cannot_be_reset(tmp_path: Path) -> None:
    assert resident_peak(tmp_path).start() is None


def test_an_engine_on_a_cpu_measures_at_least_its_smallest_and_at_most_its_largest_batch() -> None:
    budget = Engine(tiny_model("llama"), name="tiny").measure_batch_tokens()
    assert _CPU_SIZES.first <= budget <= _CPU_SIZES.max_batch
