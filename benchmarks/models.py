"""The models to measure: the embedded model, a checkpoint, or random weights in the shape of a popular model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.measuring import default_device
from tests.support.tiny_models import tiny_tokenizer
from vigor_service.engine.loading.loading import load_policy

_ROOT = Path(__file__).resolve().parent.parent
_NUM_RANDOM_IDS = 40_000


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, its name, and token ids from which prompts and completions are cut."""

    model: PreTrainedModel
    name: str
    ids: list[int]


def _shape(
    model_type: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
    }


# The sizes of SmolLM2 and Qwen2.5 are those of their published configurations; the others lie between or below.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape("llama", 2, 32, 48, 4, 2, 320, tied=True),
    "tiny-untied": _shape("qwen2", 2, 32, 48, 4, 2, 320, tied=False),
    "llama-1m": _shape("llama", 4, 128, 352, 4, 2, 4096, tied=True),
    "llama-26m": _shape("llama", 8, 320, 896, 5, 5, 49_152, tied=True),
    "llama-61m": _shape("llama", 16, 448, 1216, 7, 7, 49_152, tied=True),
    "llama-61m-untied": _shape("llama", 16, 448, 1216, 7, 7, 49_152, tied=False),
    "smollm2-135m": _shape("llama", 30, 576, 1536, 9, 3, 49_152, tied=True),
    "smollm2-360m": _shape("llama", 32, 960, 2560, 15, 5, 49_152, tied=True),
    "qwen2.5-0.5b": _shape("qwen2", 24, 896, 4864, 14, 2, 151_936, tied=True),
    "qwen2.5-1.5b": _shape("qwen2", 28, 1536, 8960, 12, 2, 151_936, tied=True),
    "qwen2.5-3b": _shape("qwen2", 36, 2048, 11_008, 16, 2, 151_936, tied=True),
    "qwen2.5-7b": _shape("qwen2", 28, 3584, 18_944, 28, 4, 152_064, tied=False),
}


def load_subject(source: str | None, *, dtype: str, device: str, num_layers: int | None = None) -> Subject:
    """Load the embedded model (None), random weights in one of ``SHAPES``, or a checkpoint by ``load_policy``.

    ``num_layers`` reduces the layers of a shape; a checkpoint keeps its layers.

    Raises:
        ModelLoadError: the model does not exist.
        ValueError: ``num_layers`` is given for a checkpoint.
    """
    if source in SHAPES:
        return _random_subject(source, dtype, device, num_layers)
    if num_layers is not None:
        raise ValueError(f"only a shape can be cut to {num_layers} layers: {', '.join(SHAPES)}")
    policy = load_policy(source, dtype=dtype, device=device)
    text = (_ROOT / "LICENSE").read_text()  # a text that is in every clone
    return Subject(policy.model, policy.name, policy.tokenizer(" ".join(text.split()))["input_ids"])


def _random_subject(name: str, dtype: str, device: str, num_layers: int | None) -> Subject:
    cut = {} if num_layers is None else {"num_hidden_layers": num_layers}
    config = AutoConfig.for_model(**{**SHAPES[name], **cut})
    place = default_device() if device == "auto" else device
    with torch.random.fork_rng(), torch.device(place):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    layers = "" if num_layers is None else f", {num_layers} layers"
    ids = torch.randint(config.vocab_size, (_NUM_RANDOM_IDS,), generator=torch.Generator().manual_seed(0))
    return Subject(model, f"{name} (random weights{layers})", ids.tolist())


def save_random_weights(shape: str, directory: Path, *, dtype: str = "float32") -> PreTrainedModel:
    """Write a checkpoint of this shape, with a tokenizer that is never used, as requests carry token ids."""
    model = load_subject(shape, dtype=dtype, device="cpu").model
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model
