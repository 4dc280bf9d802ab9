"""Loading of a PEFT adapter into its base model: complete, and with the tokens that were added when it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.model.unwrap import named_modules

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # prefix that PEFT adds to every name
_NAMES_IN_MESSAGE = 5


class AdapterError(Exception):
    """An adapter cannot be loaded; the message says why."""


def is_adapter(directory: Path) -> bool:
    """Return whether the directory holds an adapter."""
    return (directory / ADAPTER_CONFIG).is_file()


def adapter_base(adapter: Path) -> str:
    """Return the directory, file or hub name of the adapter's base model.

    Raises:
        AdapterError: its configuration cannot be read, is of another kind than LoRA, names no base or an adapter as its
            base, or has no weights.
    """
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text())
        kind, base = config["peft_type"], config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"cannot read {str(adapter / ADAPTER_CONFIG)!r}: {error!r}") from error
    if kind != "LORA":
        raise AdapterError(f"adapter {str(adapter)!r} is of type {kind!r}: only LORA (also with DoRA) is supported")
    if not isinstance(base, str) or not base:
        raise AdapterError(f"adapter {str(adapter)!r} names no base model: set base_model_name_or_path in its config")
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(f"adapter {str(adapter)!r} has no {ADAPTER_WEIGHTS}")
    beside = adapter / base
    found = str(beside) if not Path(base).exists() and beside.exists() else base
    if is_adapter(Path(found)):
        raise AdapterError(f"adapter {str(adapter)!r} has {found!r} as its base, which is an adapter: name a model")
    return found


def load_adapter(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """Return the base model with the adapter in it, once its embeddings have the adapter's number of rows.

    Raises:
        AdapterError: PEFT is not installed, the adapter does not fit the base, or tensors are missing or unexpected.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise AdapterError(f"adapter {str(adapter)!r} needs peft: pip install peft") from error
    try:
        saved = _saved_rows(adapter / ADAPTER_WEIGHTS)
        embeddings = _saved_embeddings(base, saved)
        _resize(base, embeddings)
        model = PeftModel.from_pretrained(base, str(adapter))  # pyright: ignore[reportUnknownMemberType]
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, AdapterError) as error:
        raise AdapterError(f"cannot load adapter {str(adapter)!r}: {error}") from error
    missing, unexpected = expected - saved.keys(), saved.keys() - expected - embeddings.keys()
    for names, fault in ((missing, "lacks"), (unexpected, "does not belong to the base, which has no place for")):
        if names:
            listed = ", ".join(sorted(names)[:_NAMES_IN_MESSAGE])
            raise AdapterError(f"adapter {str(adapter)!r} {fault} {len(names)} tensors, such as {listed}")
    return model


def _saved_rows(path: Path) -> dict[str, int]:
    """Return the number of rows of every tensor in the file."""
    with safe_open(path, framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
        file = cast("Any", opened)
        return {name: (file.get_slice(name).get_shape() or [1])[0] for name in file.keys()}  # noqa: SIM118 - no mapping


def _saved_embeddings(base: PreTrainedModel, saved: dict[str, int]) -> dict[str, int]:
    """Return the number of rows of each embedding that is saved with the adapter, by the name that it has there."""
    found: dict[str, int] = {}
    for module in _embedding_names(base):
        for name in (f"{_PREFIX}{module}.weight", f"{_PREFIX}{module}.base_layer.weight"):
            if name in saved:
                found[name] = saved[name]
    return found


def _embedding_names(base: PreTrainedModel) -> list[str]:
    """Return the names of the modules of the input and of the output embedding; one name if they are one module."""
    embeddings = {id(base.get_input_embeddings()), id(_output_embeddings(base))}
    return [name for name, module in named_modules(base) if id(module) in embeddings]


def _resize(base: PreTrainedModel, rows: dict[str, int]) -> None:
    """Resize the embeddings to the number of rows that the adapter was trained with, as PEFT asks of its users."""
    current = base.get_input_embeddings().get_parameter("weight")
    if set(rows.values()) <= {current.shape[0]}:
        return
    num_tied = 1 if _are_tied(base) else len(_embedding_names(base))
    if len(set(rows.values())) != 1 or len(rows) < num_tied:
        raise AdapterError(
            f"it has embeddings of {sorted(set(rows.values()))} rows, the base of {current.shape[0]}, and not all of "
            "them are saved with it: save it with save_embedding_layers=True"
        )
    base.resize_token_embeddings(next(iter(rows.values())), mean_resizing=False)


def _are_tied(base: PreTrainedModel) -> bool:
    output = _output_embeddings(base)
    return output is None or output.get_parameter("weight") is base.get_input_embeddings().get_parameter("weight")


def _output_embeddings(base: PreTrainedModel) -> nn.Module | None:
    return cast("nn.Module | None", base.get_output_embeddings())
