"""A run that is killed and resumed is the run that was not: curve, versions, digests, rewards and completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import RunningService, running_service, started, trainer_flags, wait_for
from vigor_client import checkpoint_tensors, digest_of_tensors
from vigor_trainer.monitoring.completions import read_completions
from vigor_trainer.monitoring.records import read_records

pytestmark = pytest.mark.slow
RUN_SECONDS = 250.0
NUM_STEPS, SAVE_STEPS = 8, 2
OF_TIME = {"sent_bytes", "generate_seconds", "publish_seconds", "wait_seconds", "score_seconds"}
"""What depends on the machine, and on what the service had before."""


def flags_of(service: RunningService, model: Path, output: Path) -> list[str]:
    more = {"max_steps": NUM_STEPS, "save_steps": SAVE_STEPS, "lr_scheduler_type": "cosine", "beta": 0.1}
    flags = [part for name, value in more.items() for part in (f"--{name}", str(value))]
    return [*trainer_flags(service.url, model, output), *flags]


def rounds(output: Path) -> list[dict[str, Any]]:
    records = [asdict(record) for record in read_records(output)]
    return [{name: value for name, value in record.items() if name not in OF_TIME} for record in records]


def curve(output: Path) -> list[dict[str, float]]:
    """What TRL has logged, without what depends on the machine."""
    state = json.loads((output / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())
    left_out = {"step_time", *(f"vigor/{name}" for name in OF_TIME)}
    return [{name: value for name, value in entry.items() if name not in left_out} for entry in state["log_history"]]


def run_to_its_end(flags: Sequence[str], log: Path) -> None:
    with started("vigor_trainer", *flags, log=log) as trainer:
        assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]


def test_a_run_that_is_killed_at_any_step_and_resumed_is_the_run_that_was_not(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "trainer.log"
    num_rounds = SystemRandom().randint(SAVE_STEPS + 1, NUM_STEPS - 1)
    with running_service(model, tmp_path / "whole.log") as service:
        run_to_its_end(flags_of(service, model, whole), log)
    with running_service(model, tmp_path / "killed.log") as service:
        flags = flags_of(service, model, killed)
        with started("vigor_trainer", *flags, log=log) as trainer:
            wait_for(lambda: len(read_records(killed)) >= num_rounds, process=trainer, seconds=RUN_SECONDS, log=log)
            trainer.kill()
        run_to_its_end([*flags, "--resume_from_checkpoint", "true"], log)
        served, wanted = service.client.weights(), service.client.tensors()
    said = f"killed when {num_rounds} rounds were recorded"
    assert [record["step"] for record in rounds(killed)] == list(range(NUM_STEPS)), said
    assert rounds(killed) == rounds(whole), said
    assert list(read_completions(killed)) == list(read_completions(whole)), said
    assert curve(killed) == curve(whole), said
    final = [digest_of_tensors(checkpoint_tensors(output), wanted) for output in (whole, killed)]
    assert [served.weight_digest] * 2 == final, said
