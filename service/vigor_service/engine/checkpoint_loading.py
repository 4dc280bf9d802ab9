"""A model of a checkpoint: complete, and of a class that scores text.

transformers fills in random values for tensors that a checkpoint lacks, and leaves out those it has no place for, with
no more than a warning. Either would give norms of another model, so both are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from vigor_client.checkpoints import checkpoint_files
from vigor_client.errors import CheckpointError
from vigor_service.engine.checkpoint_names import refused_unexpected
from vigor_service.engine.text_parameters import text_pass

_NAMES_IN_MESSAGE = 5
_TRANSFORMERS_FAULTS = (OSError, ValueError, ImportError, KeyError, RuntimeError, CheckpointError)
_MODEL_FAULTS = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError)


class IncompleteCheckpointError(Exception):
    """A checkpoint is not what the model's class needs; the message says which tensors, or why."""


def load_checkpoint(location: str, *, gguf_file: str | None = None, **options: Any) -> PreTrainedModel:  # noqa: ANN401 - transformers' own
    """Return the model of a directory, a hub name or a GGUF file in a directory, with ``from_pretrained``'s ``options``.

    A checkpoint of images and text gives a model that scores text alone.

    Raises:
        IncompleteCheckpointError: transformers cannot load it, tensors are missing or unexpected, or it scores no text.
    """
    source = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        if gguf_file is None and Path(location).is_dir():
            checkpoint_files(location)  # the kinds of directory that no update is taken from
        trust = bool(options.get("trust_remote_code"))
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust, **source)
        auto_class = _auto_class(config)
        model, report = auto_class.from_pretrained(
            location, use_safetensors=True, output_loading_info=True, **options, **source
        )
    except _TRANSFORMERS_FAULTS as error:
        raise IncompleteCheckpointError(str(error)) from error
    _refuse_incomplete(model, report)
    if auto_class is AutoModelForImageTextToText:
        _refuse_without_text(model)
    return model


def _auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """Return what loads the configuration: as a causal model where transformers has one, else as one of images, too."""
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if is_causal or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise IncompleteCheckpointError(f"{config.model_type} is an encoder-decoder, which scores no completions")
    return AutoModelForImageTextToText


def _refuse_incomplete(model: PreTrainedModel, report: Mapping[str, Iterable[Any]]) -> None:
    missing, unexpected = sorted(report["missing_keys"]), refused_unexpected(report["unexpected_keys"])
    faults: list[str] = []
    if missing:
        faults.append(f"it lacks {_listed(missing)}{_advice_on_tied(model, missing)}")
    if unexpected:
        faults.append(f"{type(model).__name__} has no place for its {_listed(unexpected)}")
    if faults:
        raise IncompleteCheckpointError(
            f"{'; '.join(faults)}. Norms would be those of another model: give the checkpoint with its own config.json"
        )


def _advice_on_tied(model: PreTrainedModel, missing: Iterable[str]) -> str:
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    if f"{head}.weight" not in missing:
        return ""
    return ' (if it shares the input embedding, set "tie_word_embeddings": true in config.json)'


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_IN_MESSAGE
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + (f" and {more} more tensors" if more > 0 else "")


def _refuse_without_text(model: PreTrainedModel) -> None:
    try:
        with torch.no_grad():
            text_pass(model)
    except _MODEL_FAULTS as error:
        raise IncompleteCheckpointError(f"{type(model).__name__} does not score text alone: {error}") from error
