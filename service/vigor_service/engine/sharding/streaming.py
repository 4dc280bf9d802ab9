"""A checkpoint read straight into shards: no rank ever holds the whole model.

The model is made without memory for its parameters; its buffers are computed as usual. Each rank then reads its rows of
one tensor after the other. A tensor that a conversion makes, such as the experts of a layer in one tensor, is whole in
memory for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, PreTrainedModel

from vigor_client.errors import CheckpointError
from vigor_client.weight_format.checkpoint_files import CheckpointTensors, checkpoint_tensors
from vigor_client.weight_format.writes import Copy
from vigor_service.engine.loading.adapter import is_adapter
from vigor_service.engine.loading.checkpoint import (
    IncompleteCheckpointError,
    auto_class,
    read_config,
    refuse_incomplete,
)
from vigor_service.engine.loading.checkpoint_names import CheckpointPlan, Conversion, ConversionError, plan_checkpoint
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.units import UnshardableModelError, shard
from vigor_service.engine.sharding.weights import local_rows, write_part

_FAULTS = (OSError, ValueError, ImportError, KeyError, RuntimeError, CheckpointError, ConversionError)


def load_sharded(
    directory: Path,
    ranks: Ranks,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    trust_remote_code: bool,
    names_of: Callable[[PreTrainedModel], list[str]],
) -> tuple[PreTrainedModel, str, list[str]]:
    """Return this rank's part of the model of a directory, the name of its class, and the measured parameters' names.

    ``dtype`` "auto": the checkpoint's own. ``names_of`` selects the measured parameters, of a model whose parameters
    have no memory yet.

    Raises:
        UnshardableModelError: what the directory holds is not loaded in parts, or the model cannot be sharded.
        IncompleteCheckpointError: the checkpoint is not what the model's class needs.
    """
    if not directory.is_dir() or is_adapter(directory):
        raise UnshardableModelError(
            f"--shard (VIGOR_SHARD) loads a directory with a whole model, which {str(directory)!r} is not: "
            "convert a GGUF file, or merge an adapter into its base first"
        )
    try:
        tensors = checkpoint_tensors(directory)
        model = _model_without_memory(directory, dtype, trust_remote_code=trust_remote_code)
        plan = plan_checkpoint(model, tensors)
        architecture, names = type(model).__name__, names_of(model)  # before FSDP2 changes the class
        shard(model, ranks)
        _give_memory(model, device)
        fill(model, plan, tensors)
    except UnshardableModelError:
        raise
    except _FAULTS as error:
        raise IncompleteCheckpointError(f"{directory}: {error}") from error
    return model.eval(), architecture, names


def _model_without_memory(directory: Path, dtype: torch.dtype | str, *, trust_remote_code: bool) -> PreTrainedModel:
    config = read_config(str(directory), trust_remote_code=trust_remote_code)
    if auto_class(config) is not AutoModelForCausalLM:
        raise UnshardableModelError(
            f"{config.model_type} takes images, which --shard (VIGOR_SHARD) does not load: serve it on one device"
        )
    own = config.dtype or torch.float32
    with _parameters_on_meta():
        return cast(
            "PreTrainedModel",
            AutoModelForCausalLM.from_config(  # pyright: ignore[reportUnknownMemberType]
                config, dtype=own if dtype == "auto" else dtype, trust_remote_code=trust_remote_code
            ),
        )


@contextmanager
def _parameters_on_meta() -> Generator[None]:
    """Within this context, let new modules have parameters without memory, and buffers as usual."""

    def without_memory(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(without_memory)  # pyright: ignore[reportArgumentType] - it may return a parameter
    try:
        yield
    finally:
        hook.remove()


def _give_memory(model: nn.Module, device: torch.device) -> None:
    """Give each parameter's part memory on the device, tied parameters once, and move buffers there."""
    given: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in given:
                part = torch.empty_like(parameter, device=device)
                given[id(parameter)] = nn.Parameter(part, requires_grad=parameter.requires_grad)
            setattr(module, name, given[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(module, name, buffer.to(device))


def fill(model: PreTrainedModel, plan: CheckpointPlan, tensors: CheckpointTensors) -> None:
    """Write this rank's part of all tensors.

    Raises:
        IncompleteCheckpointError: tensors are missing or unexpected, or have another shape.
        ConversionError: some tensors cannot be converted into the model's.
    """
    held = model.state_dict(keep_vars=True)
    own = {name: tensor.detach() for name, tensor in held.items()}
    filled: set[int] = set()
    with torch.no_grad():
        for conversion in plan.conversions:
            for name in _write_made(conversion, own, tensors):
                filled.add(id(held[name]))
    missing = sorted(name for name, tensor in held.items() if id(tensor) not in filled)
    refuse_incomplete(model, missing, plan.unexpected)


def _write_made(conversion: Conversion, own: dict[str, Tensor], tensors: CheckpointTensors) -> Iterable[str]:
    """Write the tensors that the conversion makes, and return their names; read no more than it needs."""
    target = own[conversion.target]
    if conversion.converter is None and isinstance(target, DTensor):
        [(source, _)] = conversion.sources
        shape = tensors.entries[source][1].shape
        if list(shape) != list(target.shape):
            raise IncompleteCheckpointError(f"{source} has shape {list(shape)}, the model's {list(target.shape)}")
        rows = Conversion(conversion.target, conversion.sources).tensors(
            lambda name: tensors.rows(name, local_rows(target)), target.dtype
        )
        target.to_local().copy_(rows[conversion.target])
        return [conversion.target]
    made = conversion.tensors(tensors.__getitem__, target.dtype)
    for name, tensor in made.items():
        write_part(own[name], Copy(tensor))
    return list(made)
