"""Evaluations while a model is trained: the run is the same with them and without."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.tiny_models import tiny_tokenizer
from tests.trainer.fake_service import FakeService, tiny_trainer
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.evaluation.completions import questions_of
from vigor_trainer.evaluation.during_training import EvaluationCallback, Evaluations, HeldOut
from vigor_trainer.evaluation.metrics import evaluation_metrics
from vigor_trainer.evaluation.models import sampler_of
from vigor_trainer.monitoring.completions import read_completions
from vigor_trainer.monitoring.evaluations import EVALUATION_COMPLETIONS_FILE, read_evaluated, read_evaluations
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.trainer import VigorTrainer
from vigor_trainer.weights.publisher import Publisher

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

TOKENIZER = tiny_tokenizer()
QUESTIONS = questions_of(
    [([{"role": "user", "content": f"What is {n} + 1?"}], str(n + 1), None) for n in range(5)], TOKENIZER
)


def evaluations_of(trainer: VigorTrainer, directory: Path, resumption: Resumption | None = None) -> Evaluations:
    model: Any = trainer.model
    sampler = sampler_of(model, TOKENIZER, max_completion_length=8, batch_size=4, seed=0)
    return Evaluations(trainer, HeldOut(QUESTIONS, 2, 1.0), sampler, TOKENIZER, directory, resumption)


def train(directory: Path, *, every: int | None, **settings: object) -> VigorTrainer:
    service = FakeService()
    with Publisher(service) as publisher:
        trainer = tiny_trainer(service, publisher, directory, **settings)
        if every:
            evaluations = evaluations_of(trainer, directory)
            trainer.add_callback(EvaluationCallback(evaluations.evaluate, every=every))
        trainer.train()
    return trainer


def test_a_run_is_the_same_with_evaluations_and_without(tmp_path: Path) -> None:
    train(tmp_path / "without", every=None)
    train(tmp_path / "with", every=1)
    completions = list(read_completions(tmp_path / "with"))
    assert len(completions) == 3 * 8
    assert completions == list(read_completions(tmp_path / "without"))
    assert [record.step for record in read_evaluations(tmp_path / "with")] == [0, 1, 2, 3]


def test_an_evaluation_comes_before_the_first_step_when_it_is_due_and_after_the_last(tmp_path: Path) -> None:
    trainer = train(tmp_path, every=2)
    records = read_evaluations(tmp_path)
    assert [record.step for record in records] == [0, 2, 3]
    completions = list(read_evaluated(tmp_path / EVALUATION_COMPLETIONS_FILE))
    assert len(completions) == 3 * 5 * (1 + 2)
    of_last = evaluation_metrics([each for each in completions if each.step == 3])
    assert records[-1].metrics["greedy"]["mean_length"]["value"] == of_last.greedy.mean_length.value  # pyright: ignore[reportOptionalMemberAccess]
    logged = [line for line in trainer.state.log_history if "eval_greedy_accuracy" in line]
    assert [line["step"] for line in logged] == [0, 2, 3]
    assert logged[-1]["eval_greedy_mean_length"] == records[-1].metrics["greedy"]["mean_length"]["value"]
    trained = [line for line in trainer.state.log_history if "vigor/mean_length" in line]
    assert [line["step"] for line in trained] == [1, 2, 3]  # TRL's own lines have lost nothing


def test_an_adapter_is_evaluated_with_its_model(tmp_path: Path) -> None:
    from peft import LoraConfig

    service = FakeService()
    with Publisher(service) as publisher:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        trainer = tiny_trainer(service, publisher, tmp_path, peft_config=config)
        before = evaluations_of(trainer, tmp_path).evaluate(0)
    plain = tiny_trainer(service, publisher, tmp_path / "plain")
    assert before.greedy == evaluations_of(plain, tmp_path / "plain").evaluate(0).greedy  # the adapter adds nothing yet


def test_a_resumed_run_keeps_the_evaluation_of_its_checkpoint(tmp_path: Path) -> None:
    service = FakeService()
    with Publisher(service) as publisher:
        trainer = tiny_trainer(service, publisher, tmp_path)
        first = evaluations_of(trainer, tmp_path)
        for step in (0, 2, 4):
            first.evaluate(step)
        resumed = evaluations_of(trainer, tmp_path, Resumption(2))
        resumed.evaluate(4)
    assert [record.step for record in read_evaluations(tmp_path)] == [0, 2, 4]
    assert sorted({each.step for each in read_evaluated(tmp_path / EVALUATION_COMPLETIONS_FILE)}) == [0, 2, 4]


def test_a_resumed_run_does_not_begin_with_an_evaluation() -> None:
    steps: list[int] = []
    callback, args, control = (
        EvaluationCallback(steps.append, every=2),
        Any,
        SimpleNamespace(should_training_stop=False),
    )
    for event, step in [("on_train_begin", 2), ("on_step_end", 3), ("on_step_end", 4), ("on_step_end", 5)]:
        getattr(callback, event)(args, SimpleNamespace(global_step=step, max_steps=9), control)
    assert steps == [4]


def test_a_run_that_is_stopped_is_evaluated_where_it_stops() -> None:
    steps: list[int] = []
    state: Any = SimpleNamespace(global_step=3, max_steps=9)
    control: Any = SimpleNamespace(should_training_stop=True)
    EvaluationCallback(steps.append, every=2).on_step_end(Any, state, control)  # pyright: ignore[reportArgumentType]
    assert steps == [3]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_model_in_shards_is_refused(kind: str, tmp_path: Path) -> None:
    sharded: Any = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=Enum("DistributedType", {"KIND": kind}).KIND)
    )
    with pytest.raises(UnsupportedSettingError, match=f"--eval_every with {kind}.*vigor-trainer eval"):
        Evaluations(sharded, HeldOut(QUESTIONS, 0, 1.0), Any, TOKENIZER, tmp_path, None)  # pyright: ignore[reportArgumentType]
