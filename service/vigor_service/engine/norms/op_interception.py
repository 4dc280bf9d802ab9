"""Intercepts every operation that takes a measured parameter.

A torch function mode stands between the model's code and torch. It first traces a small batch, to learn which rule
claims which parameter, and then runs the claimed calls under their rules. The model itself is never changed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name  # pyright: ignore[reportUnknownVariableType]
from torch.utils._pytree import tree_leaves

from vigor_service.engine.batching.shared_prefixes import KnownRows
from vigor_service.engine.rules import OpCall, recognize
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.linear import LinearCall

# A parameter that was cast or transposed, or to which a number was added, has a gradient of the same norm as before.
_DERIVING: tuple[Callable[..., Any], ...] = (
    torch.Tensor.float,
    torch.Tensor.to,
    torch.Tensor.type,
    torch.Tensor.add,
    torch.add,
    getattr(torch.Tensor.T, "__get__"),  # noqa: B009 - a property's getter, of which torch's types do not know
    torch.Tensor.t,
)


class UnclaimedCallError(Exception):
    """A measured parameter is used in a way that the trace did not show."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A call that a rule can measure: its measured parameters, and the axis of its input that holds the tokens."""

    rule: str
    names: tuple[str, ...]
    token_axis: int


class Interception(TorchFunctionMode):
    """Recognises calls; subclasses say what to do with them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        # id of each measured parameter, and of what was derived from it -> the parameter
        self._sources = {id(parameter): parameter for parameter in parameters}
        self._derived: list[Tensor] = []  # kept alive, so that their ids are not reused
        self._is_suspended = False

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Run what follows without interception."""
        self._is_suspended = True
        try:
            yield
        finally:
            self._is_suspended = False

    @abstractmethod
    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401 - whatever torch returns
        """Run a recognised call that has a measured parameter; ``plain`` runs it as torch does."""

    def run_other(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],  # noqa: ARG002
    ) -> Any:  # noqa: ANN401
        """Run a call that no rule recognises; ``tensors``: its measured parameters, or what was derived from them."""
        return function(*args, **kwargs)

    def run_unconcerned(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Run a call that takes no measured parameter."""
        return function(*args, **kwargs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if self._is_suspended:
            return func(*args, **kwargs)
        tensors = [tensor for tensor in _tensors((args, kwargs)) if id(tensor) in self._sources]
        if not tensors:
            return self.run_unconcerned(func, args, kwargs)
        if func in _DERIVING and self._is_derivation(args, kwargs):
            return self._derive(func, args, kwargs)
        call = recognize(func, args, kwargs, self._sources)
        if call is None or len(self.measured(call)) != len(tensors):  # a rule must know every use of a parameter
            return self.run_other(func, args, kwargs, tensors)
        return self.run_call(call, partial(func, *args, **kwargs))

    def measured(self, call: OpCall) -> list[nn.Parameter]:
        """Return the measured parameters that the call takes, either themselves or through a derived tensor."""
        return [self._sources[id(tensor)] for tensor in call.parameters() if id(tensor) in self._sources]

    def _is_derivation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return len(_tensors((args, kwargs))) == 1 and isinstance(args[0], Tensor) and "alpha" not in kwargs

    def _derive(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        parameter = self._sources[id(args[0])]
        derived = function(*args, **kwargs)
        if isinstance(derived, Tensor):  # Tensor.type() returns a name
            self._sources[id(derived)] = parameter
            self._derived.append(derived)
        return derived


class Tracing(Interception):
    """Records in one run which rules recognise which parameters, and which uses no rule recognises."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], num_tokens: int) -> None:
        super().__init__(parameters.values())
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._num_tokens = num_tokens
        self.claims: list[Claim] = []
        self.refusals: dict[str, str] = {}  # parameter name -> the use that no rule recognises

    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401
        names = tuple(self._names[id(parameter)] for parameter in self.measured(call))
        token_axes = call.token_axes(self._num_tokens)
        if len(token_axes) == 1:
            self.claims.append(Claim(call.rule, names, token_axes[0]))
        else:
            self.refusals |= dict.fromkeys(names, f"no single axis of tokens in the input of a {call.rule} call")
        return plain()

    def run_other(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:  # noqa: ANN401
        result = function(*args, **kwargs)
        if _holds_tensor(result):  # a call that returns none, but a dtype or a shape, is not a use
            names = [self._names[id(self._sources[id(tensor)])] for tensor in tensors]
            self.refusals |= dict.fromkeys(names, f"no rule for {resolve_name(function)}")
        return result


class RecordingLinears(Interception):
    """Runs the unmodified model, and keeps the outputs of its measured linear layers."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.outputs: dict[int, Tensor] = {}  # id of the weight -> (rows, O)

    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401
        if not isinstance(call, LinearCall) or not isinstance(call.weight, nn.Parameter):
            return plain()  # the id of a tensor derived from a parameter does not last
        output = call.plain_output(call.x)
        self.outputs[id(call.weight)] = output.flatten(0, -2).clone()  # some models add to it in place
        return output


class CompletingLinears(Interception):
    """Runs the unmodified model, and computes only those rows of its measured linear layers that are not known."""

    def __init__(self, parameters: Iterable[nn.Parameter], known_rows: KnownRows) -> None:
        super().__init__(parameters)
        self._known_rows = known_rows

    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401
        if not isinstance(call, LinearCall) or not isinstance(call.weight, nn.Parameter):
            return plain()
        return self._known_rows.complete(call.plain_output, call.x, call.weight)[0]


class NormInterception(Interception):
    """Runs the claimed calls under their rules.

    ``claims`` has exactly one claim for each parameter; ``untouched`` parameters must have no use at all.
    """

    def __init__(
        self,
        claims: Mapping[nn.Parameter, Claim],
        context: NormContext,
        untouched: Iterable[nn.Parameter] = (),
    ) -> None:
        super().__init__([*claims, *untouched])
        self._claims = {id(parameter): claim for parameter, claim in claims.items()}
        self._unseen = set(self._claims)
        self._context = context

    def check_all_seen(self) -> None:
        """Check that every claimed parameter was measured.

        Raises:
            UnclaimedCallError: a claimed parameter was not measured.
        """
        if self._unseen:
            raise UnclaimedCallError(f"{len(self._unseen)} parameters were not used as in the trace")

    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401, ARG002
        keys = [id(parameter) for parameter in self.measured(call)]
        token_axis = self._claimed_axis(keys)
        if token_axis not in call.token_axes(self._context.batch.num_tokens):
            raise UnclaimedCallError(f"a {call.rule} call differs from the one in the trace")
        self._unseen.difference_update(keys)
        return call.run(self._context, self._leaf_of, token_axis)

    def _claimed_axis(self, keys: list[int]) -> int | None:
        """Return the token axis of a call with these parameters; None if the trace did not have such a call."""
        axes = {self._claims[key].token_axis if key in self._claims else None for key in keys}
        return axes.pop() if len(axes) == 1 and self._unseen.issuperset(keys) else None

    def _leaf_of(self, tensor: Tensor) -> Tensor | None:
        parameter = self._sources.get(id(tensor))
        return None if parameter is None else self._context.leaf_of(parameter)

    def run_other(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],  # noqa: ARG002
    ) -> Any:  # noqa: ANN401
        result = function(*args, **kwargs)
        if _holds_tensor(result):
            raise UnclaimedCallError(f"{resolve_name(function)} takes a measured parameter as it did not in the trace")
        return result

    def run_unconcerned(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        result = function(*args, **kwargs)
        self._context.rematerialization.note(function, args, kwargs, result)
        return result


def _tensors(arguments: Any) -> list[Tensor]:  # noqa: ANN401 - whatever a torch function takes
    """Return the tensors among arguments, in lists and dictionaries too; a hundred times faster than a pytree."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [tensor for item in arguments for tensor in _tensors(item)]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(arguments, dict):
        return [tensor for item in arguments.values() for tensor in _tensors(item)]  # pyright: ignore[reportUnknownVariableType]
    return []


def _holds_tensor(result: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
