"""TRL's own GRPOTrainer on a tiny model: groups of 4, completions of at most 8 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from tests.support.tiny_models import tiny_model, tiny_tokenizer
from vigor_client.integrations.trl.publisher import WeightPublisher

QUESTIONS = [f"{number} + {number} =" for number in range(8)]
CHATS = Dataset.from_dict({"prompt": [[{"role": "user", "content": question}] for question in QUESTIONS]})
TEXTS = Dataset.from_dict({"prompt": QUESTIONS})


def stock_trainer(
    directory: Path,
    *rewards: object,
    weights: WeightPublisher | None = None,
    prompts: Dataset = CHATS,
    peft_config: Any = None,  # noqa: ANN401 - PEFT's
    **settings: Any,  # noqa: ANN401 - of GRPOConfig
) -> GRPOTrainer:
    """A trainer as a user has it."""
    given: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **settings,
    }
    return GRPOTrainer(
        model=tiny_model(),
        args=GRPOConfig(**given),
        reward_funcs=list(rewards),  # pyright: ignore[reportArgumentType] - any callables
        processing_class=tiny_tokenizer(),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(4)) if "eval_strategy" in settings else None,
        peft_config=peft_config,
        callbacks=[weights] if weights else None,  # pyright: ignore[reportArgumentType] - its methods are called by name
    )
