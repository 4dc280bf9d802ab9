"""Rewards by one switch, through real processes: each equals what its definition makes of the recorded completions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import RunningService, running_service, started, trainer_flags
from vigor_client import rank_rewards, ranks
from vigor_trainer.monitoring.completions import CompletionRecord, read_completions
from vigor_trainer.monitoring.records import read_records
from vigor_trainer.monitoring.run_info import read_run_info

RUN_SECONDS = 150.0
NUM_STEPS, NUM_COMPLETIONS = 3, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def groups_of(service: RunningService, model: Path, directory: Path, *flags: str) -> list[list[CompletionRecord]]:
    """Train three steps; return the completions, group by group."""
    output, log = directory / "run", directory / "trainer.log"
    run = [*trainer_flags(service.url, model, output), "--max_steps", str(NUM_STEPS), "--save_strategy", "no", *flags]
    with started("vigor_trainer", *run, log=log) as trainer:
        assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
    groups: dict[tuple[int, int], list[CompletionRecord]] = defaultdict(list)
    for record in read_completions(output):
        groups[record.step, record.group].append(record)
    assert sum(map(len, groups.values())) == NUM_STEPS * NUM_COMPLETIONS
    assert [record.step for record in read_records(output)] == list(range(NUM_STEPS))
    return list(groups.values())


def ranked(values: list[float | None]) -> list[float]:
    return rank_rewards(ranks(values))


def test_several_rewards_are_computed_from_one_pass_and_added_up(model: Path, tmp_path: Path) -> None:
    names = ["vigor", "self_certainty", "verifier", "random"]
    flags = ["--reward", *names, "--reward_weights", "0.5", "0.3", "0.2", "0.1"]
    with running_service(model, tmp_path / "service.log") as service:
        groups = groups_of(service, model, tmp_path, *flags)
    for group in groups:
        rewards = {name: [record.rewards[name] for record in group] for name in names}
        assert rewards["vigor"] == ranked([record.scaled_grad_norm for record in group])
        assert rewards["vigor"] == rank_rewards([record.rank or 0 for record in group])
        certainty = [record.self_certainty for record in group]
        assert rewards["self_certainty"] == ranked([None if value is None else -value for value in certainty])
        assert rewards["verifier"] == [float(record.is_correct or False) for record in group]
        assert sorted(rewards["random"]) == sorted(rank_rewards(range(1, len(group) + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["verifier", "random", "entropy"])
def test_a_run_without_vigor_trains_without_a_gradient_in_the_service(model: Path, tmp_path: Path, reward: str) -> None:
    with running_service(model, tmp_path / "service.log") as service:
        groups = groups_of(service, model, tmp_path, "--reward", reward)
    assert all(record.grad_norm is None and record.rank is None for group in groups for record in group)
    assert all(record.mean_entropy is not None for group in groups for record in group)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["vigor_sqrt_length", "vigor_rank"])
def test_an_ablation_rewards_by_the_norms_that_it_names(model: Path, tmp_path: Path, ablation: str) -> None:
    with running_service(model, tmp_path / "service.log") as service:
        groups = groups_of(service, model, tmp_path, f"--{ablation}", "false")
    for group in groups:
        rewards = [record.rewards["vigor"] for record in group]
        if ablation == "vigor_rank":
            assert rewards == [-(record.scaled_grad_norm or 0) for record in group]
        else:
            assert rewards == ranked([record.grad_norm for record in group])


@pytest.mark.slow
def test_the_verifier_of_a_code_task_runs_its_tests(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Write f{index}.", "tests": [f"assert f{index}() == 1"]} for index in range(4)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running_service(model, tmp_path / "service.log") as service:
        groups = groups_of(
            service, model, tmp_path, "--dataset", str(tmp_path / "task.jsonl"), "--reward", "verifier", "vigor"
        )
    assert {record.rewards["verifier"] for group in groups for record in group} == {0.0}
    assert {record.is_correct for group in groups for record in group} == {False}


def test_the_tiny_recipe_trains_against_a_real_service_and_says_what_the_run_is(model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        flags = ["--reward_url", service.url, "--recipe", "tiny", "--model", str(model), "--output_dir", str(output)]
        with started("vigor_trainer", *flags, "--max_steps", "1", log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
        measured = service.client.model()
    assert len(list(read_completions(output))) == 4
    info = read_run_info(output)
    assert info is not None
    assert (info.recipe, info.model, info.rewards, info.reward_weights) == ("tiny", str(model), ["vigor"], [1.0])
    assert (info.completions_per_step, info.num_generations, info.seed) == (4, 4, 7)
    assert info.service.num_measured_parameters == measured.num_measured_parameters
    assert set(info.service.measured_parameters) == {name for rule in measured.rules for name in rule.parameters}
    assert {"vigor-rl", "trl", "transformers", "torch"} <= info.versions.keys()
