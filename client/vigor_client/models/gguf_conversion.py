"""``python -m vigor_client.models.gguf_conversion model.gguf DIRECTORY``: a GGUF file as a float32 checkpoint.

The tensors equal the dequantized ones bit for bit; tied tensors are stored once.
"""

# transformers' signatures are partly unknown to the strict mode of the rest of this package.
# pyright: standard

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert(gguf: Path, directory: Path) -> None:
    """Write weights, configuration, tokenizer and chat template into ``directory``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    without_trace_of_quantization(model).save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)


def without_trace_of_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a fresh model: transformers refuses to save a model loaded from a quantized file."""
    import torch

    fields: dict[str, Any] = model.config.to_dict()
    kept = {name: value for name, value in fields.items() if name not in ("quantization_config", "_model_name_or_path")}
    with torch.device("meta"):
        fresh = type(model)(type(model.config).from_dict(kept))
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
