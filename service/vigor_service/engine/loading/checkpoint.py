"""Loading of a checkpoint into a complete model, of a class that scores text.

transformers fills in random values for tensors that a checkpoint lacks, and leaves out those it has no place for, with
only a warning. Either would give norms of another model, so both are refused with an error that names the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file  # pyright: ignore[reportUnknownVariableType]

from vigor_client.errors import CheckpointError
from vigor_client.weight_format.checkpoint_files import (
    INDEX_FILE,
    INDEX_SUFFIX,
    SHARD_SUFFIX,
    checkpoint_files,
    checkpoint_tensors,
    shard_names,
)
from vigor_service.engine.loading.checkpoint_names import refused_unexpected
from vigor_service.engine.model.text_parameters import named_outside_text, text_pass
from vigor_service.engine.model.unwrap import named_modules, text_config

_AutoClass: TypeAlias = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]

_NAMES_IN_MESSAGE = 5
_TRANSFORMERS_FAULTS = (OSError, ValueError, ImportError, KeyError, RuntimeError, CheckpointError)
_MODEL_FAULTS = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError)


class IncompleteCheckpointError(Exception):
    """A checkpoint is not what the model's class needs; the message says which tensors, or why."""


def load_checkpoint(location: str, *, gguf_file: str | None = None, **options: Any) -> PreTrainedModel:  # noqa: ANN401 - transformers' own
    """Return the model of a directory, a hub name or a GGUF file in a directory; ``options`` are ``from_pretrained``'s.

    From a checkpoint of images and text, the returned model scores text alone.

    Raises:
        IncompleteCheckpointError: transformers cannot load it, tensors are missing or unexpected, or it scores no text.
    """
    if gguf_file is not None:
        return _load(AutoModelForCausalLM, location, options | {"gguf_file": gguf_file})
    config = read_config(location, trust_remote_code=bool(options.get("trust_remote_code")))
    model_class = auto_class(config)
    model = _load(model_class, location, options)
    if model_class is AutoModelForCausalLM or (fault := _fault_of_text(model)) is None:
        return model
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise IncompleteCheckpointError(f"{type(model).__name__} does not score text alone: {fault}")
    unread = {name for name, _ in named_outside_text(model)}
    del model  # frees memory for the text part, which has a class of its own
    model = _load(AutoModelForCausalLM, location, options, unread=unread)
    # checkpoints of later updates are read by this list, too
    known = model._keys_to_ignore_on_load_unexpected or ()  # pyright: ignore[reportPrivateUsage]
    model._keys_to_ignore_on_load_unexpected = {*known, *(f"^{re.escape(name)}$" for name in unread)}  # pyright: ignore[reportPrivateUsage]
    return model


def read_config(location: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the configuration of a directory or a hub name.

    Raises:
        IncompleteCheckpointError: transformers cannot read it, or weights are not loaded from this kind of checkpoint.
    """
    try:
        if Path(location).is_dir():
            checkpoint_files(location)  # refuses the directories that updates are not loaded from
        config = cast("PreTrainedConfig", AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code))  # pyright: ignore[reportUnknownMemberType]
        if not Path(location).is_dir():
            _refuse_other_shards(location, getattr(config, "transformers_weights", None) or INDEX_FILE)
        return config
    except _TRANSFORMERS_FAULTS as error:
        raise IncompleteCheckpointError(str(error)) from error


def _refuse_other_shards(name: str, weights: str) -> None:
    """Refuse a checkpoint of the hub unless its weights are safetensors files of its own, before one is opened.

    transformers unpickles files with other names.
    """
    if not weights.endswith((SHARD_SUFFIX, INDEX_SUFFIX)):
        raise CheckpointError(f"{name} names {weights!r}, which is not a safetensors file")
    if weights.endswith(INDEX_SUFFIX):
        index = cached_file(name, weights, _raise_exceptions_for_missing_entries=False)
        if index is not None:
            shard_names(Path(index))


def _load(
    model_class: _AutoClass, location: str, options: Mapping[str, Any], *, unread: Collection[str] = ()
) -> PreTrainedModel:
    """Return the model with all tensors of a checkpoint except those in ``unread``."""
    try:
        loaded: Any = model_class.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
            location, use_safetensors=True, output_loading_info=True, **options
        )
    except _TRANSFORMERS_FAULTS as error:
        raise IncompleteCheckpointError(str(error)) from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Collection[str]] = loaded[1]
    unexpected = [name for name in report["unexpected_keys"] if name not in unread]
    refuse_incomplete(model, sorted(report["missing_keys"]), refused_unexpected(unexpected))
    if "gguf_file" not in options:
        _restore_padding_rows(model, location)
    return model


def _restore_padding_rows(model: PreTrainedModel, location: str) -> None:
    """Restore each embedding's row of the padding id to its values in the checkpoint.

    transformers sets the row to zero, for some classes after the checkpoint was read. The padding id is often the token
    that ends a turn, which does occur in a text.
    """
    zeroed = {
        f"{name}.weight": (module.weight, module.padding_idx)
        for name, module in named_modules(model)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
        if module.weight.device.type != "meta" and not module.weight[module.padding_idx].any()
    }
    if not zeroed:
        return
    stored = checkpoint_tensors(_directory_of(location))
    with torch.no_grad():
        for name in zeroed.keys() & stored.keys():
            weight_VD, padding_id = zeroed[name]
            weight_VD[padding_id] = stored[name][padding_id].to(weight_VD)


def _directory_of(location: str) -> Path:
    """Return the directory with the files of a local directory, or of a model that was fetched from the hub."""
    if Path(location).is_dir():
        return Path(location)
    return Path(str(cached_file(location, CONFIG_NAME))).parent


def auto_class(config: PreTrainedConfig) -> _AutoClass:
    """Return the auto class that loads the model class of the checkpoint, so that tensors have the same names.

    If transformers has a class for text and one for text with images, a checkpoint may be of either.

    Raises:
        IncompleteCheckpointError: the model cannot score completions.
    """
    with_images = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    was_saved_so = getattr(with_images, "__name__", None) in (config.architectures or [])
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if with_images is None or (is_causal and not was_saved_so):
        return AutoModelForCausalLM
    if config.is_encoder_decoder or text_config(config).is_encoder_decoder:
        raise IncompleteCheckpointError(f"{config.model_type} is an encoder-decoder model, which cannot be scored")
    return AutoModelForImageTextToText


def refuse_incomplete(model: PreTrainedModel, missing: list[str], unexpected: list[str]) -> None:
    """Check that a checkpoint had all of a model's tensors, and no others.

    Raises:
        IncompleteCheckpointError: tensors are missing or unexpected; the message names them.
    """
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
    head = next((name for name, module in named_modules(model) if module is model.get_output_embeddings()), None)
    if f"{head}.weight" not in missing:
        return ""
    return ' (if it shares the input embedding, set "tie_word_embeddings": true in config.json)'


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_IN_MESSAGE
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + (f" and {more} more tensors" if more > 0 else "")


def _fault_of_text(model: PreTrainedModel) -> Exception | None:
    """Return the error that a pass over text alone raises; None if it raises none."""
    try:
        with torch.no_grad():
            text_pass(model)
    except _MODEL_FAULTS as error:
        return error
    return None
