"""Whatever lay in the output directory before, what is read from it is what training ended with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.engine.loading.test_loading import save_adapter
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from vigor_client import checkpoint_tensors
from vigor_service.engine.loading.loading import load_policy
from vigor_trainer.weights.saving import save_final_model

TRAINED = tiny_model("qwen2")


class Saving:
    """A trainer that has the trained model."""

    def __init__(self, shard_size: str) -> None:
        self.accelerator = Accelerator(cpu=True)
        self._shard_size = shard_size

    def save_model(self, output_dir: str | None = None) -> None:
        assert output_dir is not None
        TRAINED.save_pretrained(output_dir, max_shard_size=self._shard_size)


def earlier_file(directory: Path) -> None:
    save_tiny_checkpoint(directory, "qwen2", initializer_range=0.1)


def earlier_shards(directory: Path) -> None:
    tiny_model("qwen2", initializer_range=0.1).save_pretrained(directory, max_shard_size="20KB")


def earlier_adapter(directory: Path) -> None:
    save_adapter(directory, str(save_tiny_checkpoint(directory / "base")))


@pytest.mark.parametrize("shard_size", ["20KB", "10MB"])
@pytest.mark.parametrize("earlier", [earlier_file, earlier_shards, earlier_adapter])
def test_nothing_of_an_earlier_run_is_read_in_place_of_the_final_model(
    earlier: Callable[[Path], None], shard_size: str, tmp_path: Path
) -> None:
    earlier(tmp_path)
    save_final_model(Saving(shard_size), tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tensors, loaded = checkpoint_tensors(tmp_path), load_policy(str(tmp_path)).model
    for name, parameter in TRAINED.named_parameters():
        assert torch.equal(tensors[name], parameter)
        assert torch.equal(loaded.get_parameter(name), parameter)
