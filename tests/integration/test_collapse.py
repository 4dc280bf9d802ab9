"""A run that is made to collapse, through real processes: the watch sees it, says why, and stops it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import running_service, started, trainer_flags
from vigor_trainer.monitoring.collapse import WARNINGS_FILE, CollapseWarning
from vigor_trainer.monitoring.record_file import records_in
from vigor_trainer.monitoring.records import read_records

RUN_SECONDS = 280.0
MAX_STEPS = 120
REWARD = "tests.integration.repeating_reward:repeating"


@pytest.mark.timeout(400)
def test_a_policy_that_is_paid_for_repeating_itself_is_stopped_at_its_last_good_checkpoint(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        flags = [*trainer_flags(service.url, model, output), "--reward", REWARD, "--stop_on_collapse"]
        flags += ["--max_completion_length", "16", "--max_steps", str(MAX_STEPS), "--save_steps", "5"]
        with started("vigor_trainer", *flags, "--save_total_limit", "1", "--save_only_model", log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
    warnings = list(records_in(output / WARNINGS_FILE, CollapseWarning))
    assert {warning.cause for warning in warnings} & {"repetition", "duplicates", "entropy"}
    last_step = read_records(output)[-1].step
    assert last_step == warnings[0].step < MAX_STEPS - 1
    good = Path(warnings[0].last_good_checkpoint or "")
    assert good == output / f"checkpoint-{last_step // 5 * 5}"
    assert (good / "model.safetensors").exists()
    said = log.read_text()
    assert said.count(f"warning: {warnings[0]}") == 1
    assert f"stopped by --stop_on_collapse; the last good checkpoint: {good}" in said
