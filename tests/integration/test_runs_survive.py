"""A run is the same run when it is killed and resumed, and when two processes share it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import SystemRandom
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.ranks import launch, run_ranks
from tests.trainer.running import RunningService, running_service, started, trainer_flags, wait_for
from vigor_client import checkpoint_tensors, digest_of_tensors
from vigor_trainer.monitoring.completions import read_completions
from vigor_trainer.monitoring.records import read_records

pytestmark = pytest.mark.slow
RUN_SECONDS = 250.0
NUM_STEPS, SAVE_STEPS = 8, 2
ROUNDING = 1e-4  # two processes add up gradients in another order
OF_TIME = {
    *("sent_bytes", "generate_seconds", "publish_seconds", "wait_seconds"),
    *("score_seconds", "score_queue_seconds", "score_compute_seconds"),
}
"""What depends on the machine, and on what the service had before."""


def flags_of(service: RunningService, model: Path, output: Path, num_iterations: int) -> list[str]:
    more = {"max_steps": NUM_STEPS, "save_steps": SAVE_STEPS, "lr_scheduler_type": "cosine", "beta": 0.1}
    more |= {"num_iterations": num_iterations}
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


@pytest.mark.parametrize("num_iterations", [1, 2])  # a checkpoint lies where both generate
def test_a_run_that_is_killed_at_any_step_and_resumed_is_the_run_that_was_not(
    tmp_path: Path, num_iterations: int
) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "trainer.log"
    num_rounds = SystemRandom().randint(SAVE_STEPS // num_iterations + 1, NUM_STEPS // num_iterations - 1)
    with running_service(model, tmp_path / "whole.log") as service:
        run_to_its_end(flags_of(service, model, whole, num_iterations), log)
    with running_service(model, tmp_path / "killed.log") as service:
        flags = flags_of(service, model, killed, num_iterations)
        with started("vigor_trainer", *flags, log=log) as trainer:
            wait_for(lambda: len(read_records(killed)) >= num_rounds, process=trainer, seconds=RUN_SECONDS, log=log)
            trainer.kill()
        run_to_its_end([*flags, "--resume_from_checkpoint", "true"], log)
        served, wanted = service.client.weights(), service.client.tensors()
    said = f"killed when {num_rounds} rounds were recorded"
    assert [record["step"] for record in rounds(killed)] == list(range(0, NUM_STEPS, num_iterations)), said
    assert rounds(killed) == rounds(whole), said
    assert list(read_completions(killed)) == list(read_completions(whole)), said
    assert curve(killed) == curve(whole), said
    final = [digest_of_tensors(checkpoint_tensors(output), wanted) for output in (whole, killed)]
    assert [served.weight_digest] * 2 == final, said


@pytest.mark.parametrize("saves", [True, False])
def test_ctrl_c_says_up_to_which_step_a_run_is_saved_and_how_it_goes_on(tmp_path: Path, saves: bool) -> None:
    model, output, log = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        flags = [*flags_of(service, model, output, 1), "--max_steps", "1000"]
        flags += [] if saves else ["--save_strategy", "no"]
        with started("vigor_trainer", *flags, log=log) as trainer:
            wait_for(lambda: len(read_records(output)) > SAVE_STEPS + 1, process=trainer, seconds=RUN_SECONDS, log=log)
            trainer.send_signal(signal.SIGINT)
            assert trainer.wait(RUN_SECONDS) == 130
    (said,) = re.findall(r"^vigor-trainer: (.*)$", log.read_text(), re.MULTILINE)
    if saves:
        found = re.fullmatch(
            rf"interrupted after step \d+, saved up to step (\d+) in ({re.escape(str(output))}\S+) "
            r"\(continue with --resume_from_checkpoint true\)",
            said,
        )
        assert found is not None, said
        assert json.loads((Path(found[2]) / "trainer_state.json").read_text())["global_step"] == int(found[1])
    else:
        assert re.fullmatch(r"interrupted after step \d+, no checkpoint was saved \(.*\)", said), said


def test_two_processes_train_as_one_does_on_the_same_completions(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    outputs = [tmp_path / "one", tmp_path / "two"]
    for num_processes, output in enumerate(outputs, start=1):
        with running_service(model, tmp_path / f"{output.name}.log") as service:
            more = ["--optim", "sgd", "--learning_rate", "0.1", "--max_steps", "4", "--save_strategy", "no"]
            more += ["--loss_type", "dapo"]  # bnpo divides by the tokens of each process
            more += ["--per_device_train_batch_size", str(8 // num_processes), "--num_generations", "8"]
            flags = [*trainer_flags(service.url, model, output), *more]
            starts = run_ranks if num_processes == 1 else launch
            starts("tests.trainer.planned_run", *flags, num_processes=num_processes)
            served, wanted = service.client.weights(), service.client.tensors()
            assert served.weight_digest == digest_of_tensors(checkpoint_tensors(output), wanted)
    one, two = (list(read_completions(output)) for output in outputs)
    assert len(one) == len(two) == 4 * 8
    for mine, theirs in zip(one, two, strict=True):
        assert (mine.prompt, mine.completion_ids, mine.rewards) == (
            theirs.prompt,
            theirs.completion_ids,
            theirs.rewards,
        )
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=ROUNDING)
    assert [(record.step, record.weight_version) for record in read_records(outputs[1])] == [(n, n) for n in range(4)]
    weights = [load_file(output / "model.safetensors") for output in outputs]
    torch.testing.assert_close(weights[1], weights[0], rtol=ROUNDING, atol=ROUNDING)
    assert not torch.equal(weights[0]["lm_head.weight"], load_file(model / "model.safetensors")["lm_head.weight"])
