"""A model in units of FSDP2, and passes in which all ranks gather the same units in the same order.

A unit is a decoder layer, or all modules outside the layers together: embedding, head and last norm, tied or not. At
rest a rank holds its part of each parameter. A layer is gathered while it runs, in the forward and in the backward
pass; the other unit is gathered for a whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from vigor_service.engine.memory.out_of_memory import is_out_of_memory, release_memory
from vigor_service.engine.model.decoder import decoder_layers
from vigor_service.engine.model.text_parameters import text_pass
from vigor_service.engine.model.unwrap import causal_model
from vigor_service.engine.norms.self_check import reason
from vigor_service.engine.sharding.ranks import Ranks

R = TypeVar("R")

_ADVICE = "score with the whole model on one device, without --shard (VIGOR_SHARD)"


class UnshardableModelError(ValueError):
    """The model cannot be sharded; the message says why, and what to do."""


class LockstepError(Exception):
    """This rank is out of step with the others: the engine has to be started again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a rank raised in a pass. It is sent to the other ranks, which raise the same."""

    out_of_memory: bool
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        return cls(is_out_of_memory(error), reason(error))


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """The result of one pass, or its failure."""

    result: R | None = None
    failure: Failure | None = None


def shard(model: PreTrainedModel, ranks: Ranks) -> None:
    """Shard the model: of every parameter, rank ``i`` holds part ``i`` of the ``size`` equal parts of the first axis.

    Parameters on the meta device stay there, and later get memory only for a part.

    Raises:
        UnshardableModelError: the model's layers are not found, or a parameter has no axis to divide.
    """
    layers = _layers(causal_model(model))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise UnshardableModelError(f"{name} is a single number, which FSDP2 cannot divide: {_ADVICE}")
    for unit in (*layers, causal_model(model)):
        fully_shard(unit, mesh=ranks.mesh)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = decoder_layers(model)
    if not layers:
        raise UnshardableModelError(f"{type(model).__name__} has no list of its decoder layers: {_ADVICE}")
    return layers


class ShardedModel:
    """A model that was sharded by ``shard``, with its values. All of its parameters are frozen from here on.

    ``names`` are the parameters whose gradient is measured.

    Raises:
        UnshardableModelError: FSDP2 does not support the model; the message gives its reason.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        self.root = causal_model(model.eval())
        self.layers = list(_layers(self.root))
        self._names = names
        self._model = model
        self._units = [_as_unit(module) for module in (self.root, *self.layers)]
        self._gathered: list[int] = []  # units, in the order in which they were gathered since the pass began
        self._orders: dict[str, list[int]] = {}  # kind of pass -> units in the order of its gathers
        for number, unit in enumerate(self._units):
            unit.set_custom_all_gather(_NotingAllGather(number, self._gathered))
        self._units[0].set_reshard_after_backward(False, recurse=False)  # ``held`` frees it
        self._set_requires_grad(names)  # FSDP2 looks at it in the first pass
        self._run_through_root()
        self._require_grad(())
        self.measured = self._gathered_parameters()

    def _run_through_root(self) -> None:
        """Run the model once from its root, which FSDP2 needs to find all units."""
        try:
            with torch.no_grad():
                text_pass(self.root)
        except (ValueError, AssertionError) as error:
            raise UnshardableModelError(f"FSDP2 cannot divide this model: {error}; {_ADVICE}") from error
        self._units[0].reshard()

    def _require_grad(self, names: Iterable[str]) -> None:
        """Let exactly these parameters require gradients, whether gathered or not.

        A gathered parameter gets the setting from FSDP2 when it is gathered, so that all units are gathered here. In a
        pass, interception would count the change of the setting as a use of the parameter.
        """
        self._set_requires_grad(names)
        for unit in self._units:
            unit.unshard()
            unit.reshard()

    def _set_requires_grad(self, names: Iterable[str]) -> None:
        chosen = set(names)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in chosen)

    def _gathered_parameters(self) -> dict[str, nn.Parameter]:
        """Return the measured parameters as modules have them while they are gathered: the same objects each time."""
        found: dict[str, nn.Parameter] = {}
        for unit in self._units:
            unit.unshard()
            own = self._model.named_parameters()
            found |= {name: parameter for name, parameter in own if not isinstance(parameter, DTensor)}
            unit.reshard()
        return {name: found[name] for name in self._names}

    @property
    def num_local_bytes(self) -> int:
        """Bytes of parameters that this rank holds at rest."""
        return sum(local_part(parameter).nbytes for parameter in self._model.parameters())

    @contextmanager
    def held(self) -> Generator[None]:
        """Within this context, hold the unit outside the layers gathered.

        Afterwards, free all gathered parameters, and reset FSDP2's state of the pass.
        """
        self._units[0].unshard()
        try:
            yield
        finally:
            self._units[0].reset_iter_state()

    @contextmanager
    def requiring_grad(self) -> Generator[None]:
        """Let the measured parameters require gradients."""
        self._require_grad(self._names)
        try:
            with torch.enable_grad():
                yield
        finally:
            self._require_grad(())

    def named_parts(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Yield the measured parameters as this rank holds them at rest."""
        measured = set(self._names)
        return ((name, parameter) for name, parameter in self._model.named_parameters() if name in measured)

    def run_alike(self, compute: Callable[[], R]) -> R:
        """Return ``compute()``, which all ranks run in the same way. If it fails, it fails on all of them."""
        with self.held():
            return compute()

    def run_pass(self, kind: str, compute: Callable[[], R]) -> Outcome[R]:
        """Return the outcome of one pass, which other ranks run as well; each kind gathers the same units each time.

        If the pass fails, this rank joins in gathering the remaining units, so that the other ranks do not wait.

        Raises:
            LockstepError: the pass gathered other units than earlier ones of its kind, or failed as the first of them.
        """
        self._gathered.clear()
        outcome: Outcome[R]
        try:
            with self.held():
                outcome = Outcome(compute())
        except Exception as error:  # noqa: BLE001 - every rank raises it, once none waits for this one
            outcome = Outcome(failure=Failure.of(error))
        if outcome.failure is not None:
            self._gather_what_is_left(kind, outcome.failure)
        elif self._gathered != self._orders.setdefault(kind, list(self._gathered)):
            raise LockstepError(f"a pass of {kind} gathered {self._gathered}, others {self._orders[kind]}")
        return outcome

    def _gather_what_is_left(self, kind: str, failure: Failure) -> None:
        release_memory()
        if kind not in self._orders:
            raise LockstepError(failure.message)
        for number in self._orders[kind][len(self._gathered) :]:
            self._units[number].unshard()
            self._units[number].reshard()


def raise_first(failures: Iterable[Failure | None]) -> None:
    """Raise the error of the first rank that failed, if one did.

    Raises:
        MemoryError: its memory ran out.
        RuntimeError: anything else.
    """
    for rank, failure in enumerate(failures):
        if failure is not None:
            kind = MemoryError if failure.out_of_memory else RuntimeError
            raise kind(f"rank {rank}: {failure.message}")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: its rows, or the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _as_unit(module: Any) -> FSDPModule:  # noqa: ANN401 - fully_shard changes the class of a module
    assert isinstance(module, FSDPModule)  # noqa: S101 - of ``shard``
    return module


class _NotingAllGather(DefaultAllGather):
    """Gathers a unit, and appends its number to ``gathered``."""

    def __init__(self, number: int, gathered: list[int]) -> None:
        super().__init__()
        self._number = number
        self._gathered = gathered

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        self._gathered.append(self._number)
        return super().__call__(output_tensor, input_tensor, group, async_op)
