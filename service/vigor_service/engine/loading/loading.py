"""Loading of a model and its tokenizer from a directory, a hub name, a GGUF file, or the embedded default.

A directory with an adapter_config.json is a PEFT adapter: it is loaded into the base model that it names. A pickle is
never loaded, and code from a checkpoint is never run without ``trust_remote_code``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vigor_service.engine.loading.adapter import AdapterError, adapter_base, is_adapter, load_adapter
from vigor_service.engine.loading.checkpoint import IncompleteCheckpointError, load_checkpoint

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_READ_IN_PARTS = ["*.json", "*.safetensors", "*.py"]  # and never a pickle
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded model with its tokenizer, and the name to show for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_policy(
    source: str | None, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> Policy:
    """Load a directory with safetensors, a ``.gguf`` file, a hub name, or (None) the embedded model.

    A directory that holds a PEFT adapter gives its base model with the adapter in it, and the adapter's tokenizer if
    there is one. The base is a directory, a file or a name; a relative path is also looked up from the adapter's
    directory.

    ``dtype`` "auto" is float32 on a CPU and the checkpoint's own dtype elsewhere; "own" is the checkpoint's own dtype
    on any device. ``device`` "auto" is a CUDA device if there is one.

    Raises:
        ModelLoadError: there is no such model, it has no safetensors, tensors of it are missing or unexpected, it would
            need its own code, it is an adapter of another kind than LoRA or PEFT is not installed, or the dtype or the
            device is not known.
    """
    if source is not None and is_adapter(Path(source)):
        return _load_with_adapter(Path(source), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    location, name, options = _locate(source)
    try:
        tokenizer = _tokenizer(location, trust_remote_code=trust_remote_code, **options)
        model = load_checkpoint(location, dtype=torch_dtype, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, IncompleteCheckpointError) as error:
        raise ModelLoadError(f"cannot load model {name!r}: {error}") from error
    model.eval().to(torch_device)  # pyright: ignore[reportArgumentType, reportUnknownMemberType] - transformers wraps torch's own method
    return Policy(model, tokenizer, name)


def _load_with_adapter(adapter: Path, *, dtype: str, device: str, trust_remote_code: bool) -> Policy:
    try:
        base = load_policy(adapter_base(adapter), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        model = load_adapter(base.model, adapter)
        tokenizer = _tokenizer(adapter) if (adapter / _TOKENIZER_CONFIG).is_file() else base.tokenizer
    except AdapterError as error:
        raise ModelLoadError(str(error)) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(f"cannot load the tokenizer of adapter {str(adapter)!r}: {error}") from error
    model.eval()
    return replace(base, model=model, tokenizer=tokenizer, name=adapter.name)  # pyright: ignore[reportArgumentType] - PEFT's wrapper serves as a model


def _tokenizer(location: str | Path, **options: Any) -> PreTrainedTokenizerBase:  # noqa: ANN401 - transformers' own
    try:
        return AutoTokenizer.from_pretrained(location, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except ValueError as error:
        raise ValueError(f"no tokenizer that can be read beside config.json: {error}") from error


def _locate(source: str | None) -> tuple[str, str, dict[str, Any]]:
    """Return what transformers loads from, the name to show, and further options."""
    if source is None:
        return str(embedded_model()), EMBEDDED_NAME, {}
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"cannot load model {source!r}: there is no such file")
        return str(path.parent), path.stem, {"gguf_file": path.name}
    return source, path.name if path.is_dir() else source, {}


def model_directory(source: str | None) -> tuple[Path, str]:
    """Return the directory with a model's files, and the name to show; a model of the hub is fetched into its cache.

    Raises:
        ModelLoadError: there is no such model, or it could not be fetched.
    """
    if source is None:
        return embedded_model(), EMBEDDED_NAME
    path = Path(source)
    if path.exists():
        return path, path.name
    try:
        return Path(snapshot_download(source, allow_patterns=_READ_IN_PARTS)), source
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot load model {source!r}: {error}") from error


def embedded_model() -> Path:
    """Return the directory of the embedded model.

    Raises:
        ModelLoadError: the directory does not exist, and cannot be made.
    """
    from vigor_client.models.embedded import EmbeddedModelError, embedded_model_dir

    try:
        return embedded_model_dir()
    except EmbeddedModelError as error:
        raise ModelLoadError(str(error)) from error


def resolve_device(device: str) -> torch.device:
    """Return the device of this name; "auto" is a CUDA device if there is one, else the CPU.

    Raises:
        ModelLoadError: the device cannot be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"device {device!r} cannot be used: {error}") from error


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """Return the dtype of this name on the device; a returned "auto" stands for the checkpoint's own dtype.

    Raises:
        ModelLoadError: no dtype has this name.
    """
    if dtype == "own":
        return "auto"
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise ModelLoadError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
