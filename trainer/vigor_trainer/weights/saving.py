"""Saves the final model so that transformers and the service read exactly that model."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from vigor_trainer.weights.accelerator import Accelerator

# Files by which readers recognize the layout, in their order of precedence: adapter, single file, shards.
_LAYOUTS = (ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


class SavingTrainer(Protocol):
    """The part of `transformers.Trainer` that is used here."""

    @property
    def accelerator(self) -> Accelerator: ...

    def save_model(self, output_dir: str | None = None) -> None: ...


def save_final_model(trainer: SavingTrainer, directory: Path) -> None:
    """Save the model, and remove files of an earlier run in another layout, which would be read instead.

    All processes must call it.
    """
    if trainer.accelerator.is_main_process:
        for name in _LAYOUTS:
            (directory / name).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(directory))
