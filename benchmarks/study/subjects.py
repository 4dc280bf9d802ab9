"""The subjects of the study: models of known accuracy, their questions, and settings small enough for two cores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.study.variants import VARIANTS, Variant
from examples.sums.base_model import NUM_STEPS, make_base_model
from examples.sums.works import with_dropped_carries, with_random_slips, write_questions
from vigor_client.models.embedded import embedded_model_dir

COMMON = {
    "num_generations": "8",
    "temperature": "1.0",
    "loss_type": "bnpo",
    "scale_rewards": "group",
    "lr_scheduler_type": "constant",
    "warmup_steps": "0",
    "beta": "0",
    "use_cpu": "true",
    "bf16": "false",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
    "activation_checkpointing": "false",
}
"""Settings of every run; flags of `vigor-trainer`."""


@dataclass(frozen=True)
class Subject:
    """A model with the questions that it is trained on.

    ``prepare`` makes the model's directory and the file of questions; a model that is made here is first trained for
    ``num_base_steps``. ``window`` is the number of steps whose completions form one point of a curve.
    """

    name: str
    text: str
    prepare: Callable[[Path, Path, int], None]
    settings: Mapping[str, str]
    variants: Sequence[Variant]
    num_seeds: int
    num_steps: int
    window: int
    num_base_steps: int = NUM_STEPS


def _of_slips(model: Path, questions: Path, num_steps: int) -> None:
    write_questions(questions)
    make_base_model(model, with_random_slips, num_steps=num_steps)


def _of_carries(model: Path, questions: Path, num_steps: int) -> None:
    write_questions(questions)
    make_base_model(model, with_dropped_carries, num_steps=num_steps)


def _of_smollm2(model: Path, questions: Path, _num_steps: int) -> None:
    pairs = [pair for pair in product(range(50), repeat=2) if pair != _EXAMPLE]
    questions.write_text("".join(f"{json.dumps(_asked(a, b))}\n" for a, b in pairs))
    model.symlink_to(embedded_model_dir())


def _asked(a: int, b: int) -> dict[str, object]:
    """Return a question after an example with a short answer; without it, a quarter of the answers do not stop."""
    first, second = _EXAMPLE
    turns = [
        ("system", "Add."),
        ("user", f"{first} + {second} ="),
        ("assistant", f"{first} + {second} = {first + second}"),
        ("user", f"{a} + {b} ="),
    ]
    return {"prompt": [{"role": role, "content": content} for role, content in turns], "answer": str(a + b)}


_EXAMPLE = (12, 15)
_SUMS = {"per_device_train_batch_size": "64", "max_completion_length": "16", "learning_rate": "1e-4"}

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "random-slips",
            "each of the two sums of a work is wrong at random in a third of the cases: the truth is the most frequent "
            "answer",
            _of_slips,
            COMMON | _SUMS,
            VARIANTS,
            num_seeds=5,
            num_steps=200,
            window=10,
        ),
        Subject(
            "dropped-carries",
            "65 % of the carries are dropped: where there is a carry, one wrong answer is more frequent than the truth",
            _of_carries,
            COMMON | _SUMS,
            VARIANTS,
            num_seeds=5,
            num_steps=200,
            window=10,
        ),
        Subject(
            "smollm2-addition",
            "SmolLM2-135M-Instruct, asked for the sum of two numbers below 50, each sum at most once",
            _of_smollm2,
            COMMON | {"per_device_train_batch_size": "16", "max_completion_length": "32", "learning_rate": "5e-6"},
            [variant for variant in VARIANTS if variant.name in ("vigor", "self_certainty", "verifier", "random")],
            num_seeds=3,
            num_steps=40,
            window=8,
        ),
    )
}
