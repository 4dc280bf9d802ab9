"""Loads tokenizer, model and the library that generates, for sampling completions."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from vigor_client.models.embedded import embedded_model_dir
from vigor_trainer.building import building
from vigor_trainer.errors import InvalidModelError, UnsupportedSettingError
from vigor_trainer.evaluation.arguments import SamplingArguments
from vigor_trainer.evaluation.sampling import GenerateSampler, Sampler
from vigor_trainer.evaluation.vllm_sampling import VllmSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def model_name(given: str | None) -> str:
    """Return the directory or hub name of a model; if none is given, the directory of the embedded model.

    Raises:
        InvalidModelError: the embedded model cannot be made.
    """
    with building("the embedded model", kind=InvalidModelError):
        return given or str(embedded_model_dir())


def load_tokenizer(name: str, **settings: Any) -> PreTrainedTokenizerBase:  # noqa: ANN401 - of transformers
    """Return a model's tokenizer, which pads on the left. Raises InvalidModelError if it cannot be loaded."""
    with building(f"--model {name}: the tokenizer cannot be loaded", kind=InvalidModelError):
        load = cast("Callable[..., PreTrainedTokenizerBase]", AutoTokenizer.from_pretrained)  # pyright: ignore[reportUnknownMemberType]
        return load(name, padding_side="left", truncation_side="left", **settings)


def load_sampler(arguments: SamplingArguments, name: str, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """Return a sampler of the model.

    Raises:
        UnsupportedSettingError: vLLM was asked for and is not installed.
        InvalidModelError: the model cannot be loaded.
    """
    has_vllm = find_spec("vllm") is not None
    if arguments.backend == "vllm" and not has_vllm:
        raise UnsupportedSettingError("--backend vllm needs a package: pip install vllm")
    with building(f"--model {name} cannot be loaded", kind=InvalidModelError):
        if has_vllm and arguments.backend != "transformers":
            length = arguments.max_completion_length
            return VllmSampler(import_module("vllm"), name, max_completion_length=length, seed=arguments.seed)
        return sampler_of(
            _load_model(name),
            tokenizer,
            max_completion_length=arguments.max_completion_length,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            shows_progress=True,
        )


def sampler_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **settings: Any,  # noqa: ANN401 - of GenerateSampler
) -> GenerateSampler:
    """Return a sampler whose completions end as TRL's do: at an end-of-sequence token of the model, or at padding."""
    ends = end_ids(model, tokenizer)
    pad_id = cast("int | None", tokenizer.pad_token_id)  # pyright: ignore[reportUnknownMemberType] - untyped attribute
    return GenerateSampler(model, end_ids=ends, pad_id=min(ends) if pad_id is None else pad_id, **settings)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a completion: the end-of-sequence tokens of model and tokenizer, and padding.

    Raises:
        ValueError: there are no such tokens.
    """
    generation = model.generation_config
    configured = cast("int | list[int] | None", getattr(generation, "eos_token_id", None))
    of_model = configured if isinstance(configured, list) else [configured]
    of_tokenizer = cast("list[int | None]", [tokenizer.eos_token_id, tokenizer.pad_token_id])  # pyright: ignore[reportUnknownMemberType]
    ends = frozenset(token_id for token_id in [*of_model, *of_tokenizer] if token_id is not None)
    if not ends:
        raise ValueError("neither model nor tokenizer has an end-of-sequence token")
    return ends


def _load_model(name: str) -> PreTrainedModel:
    """Return the model in the dtype of its checkpoint, or in float32 without an accelerator."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    load = cast("Callable[..., PreTrainedModel]", AutoModelForCausalLM.from_pretrained)  # pyright: ignore[reportUnknownMemberType]
    model = load(name, dtype="auto" if device else torch.float32)
    return model.eval() if device is None else model.to(device).eval()  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
