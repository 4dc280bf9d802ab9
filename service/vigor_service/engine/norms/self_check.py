"""The check, when a model is loaded, that the fast path gives this model's exact norms.

Each rule's parameters are compared separately: most rules have such a small share of the whole norm that leaving one
out would not show. Models behave differently beyond each window, chunk, number of kept keys and original length that
the config names. So for each such length, a longer sequence is checked together with short ones that share a prompt.
"""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.memory.activation_policy import Activations, activations_run_once
from vigor_service.engine.memory.free_memory import free_bytes
from vigor_service.engine.memory.out_of_memory import is_out_of_memory, release_memory
from vigor_service.engine.model.parameter_selection import in_parts
from vigor_service.engine.model.rotary import length_dependent
from vigor_service.engine.model.unwrap import causal_model, text_config
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import self_check_ids, self_check_sequences
from vigor_service.engine.norms.reference import loss_logits, requiring_grad, token_nll
from vigor_service.engine.ops.dtypes import SIXTEEN_BITS
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import gradients_of
from vigor_service.engine.sequences import TokenSequence

logger = logging.getLogger(__name__)

# How far a rule's share of the norm may be from the reference's, relative. Check sequences are random tokens, on which
# real models are ill-conditioned: two orders of summation differ by 2e-4 on SmolLM2 in float32.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}
_SMALLEST_SCALE = 1e-3  # of the whole norm: the error of a smaller norm is taken relative to this
_BEYOND = 9  # tokens by which a long sequence exceeds a length at which the model behaves differently
_MAX_SECONDS = 60.0  # that the reference may take for one long sequence; lengths that take more stay unchecked
_LENGTHS = re.compile(r"window|chunk|topk|top_k|original_max_position|local_attention|block_size|floor_scale")

SquaredShares = Mapping[str, float]
"""Parameter name -> ``‖∇ NLL‖²`` of that parameter alone."""


class UntrustedNormError(Exception):
    """The fast path does not give the reference's norms; the message names the rule and the error."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What the fast path proved exact for: sequences of up to ``max_tokens`` (None: any), and layers that run twice."""

    max_tokens: int | None
    layers_run_twice: bool


def check(
    fast: FastNorms,
    model: PreTrainedModel,
    measured: Mapping[str, nn.Parameter],
    *,
    max_seconds: float = _MAX_SECONDS,
) -> Trust:
    """Compare the fast path with the reference, rule by rule, and return what the fast path proved exact for.

    A 16-bit model is checked in its own dtype and, where memory allows, in float32, where small faults show.

    Raises:
        UntrustedNormError: norms of the short sequences, or of a long one that was checked, differ.
    """
    subject = _Subject(fast, model, measured)
    short = self_check_sequences(causal_model(model))
    subject.check(short)
    with _in_float32(causal_model(model)) as was_cast:
        if was_cast:
            subject.check(short)
        return Trust(subject.checked_tokens(max_seconds), subject.may_run_layers_twice(short))


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model, its fast path and what is measured of it."""

    fast: FastNorms
    model: PreTrainedModel
    measured: Mapping[str, nn.Parameter]

    @property
    def _dtype(self) -> torch.dtype:
        return causal_model(self.model).dtype

    def check(self, sequences: Sequence[TokenSequence], choices: Sequence[Activations] | None = None) -> None:
        """Raise UntrustedNormError if a rule's shares differ in one of the sequences, scored together."""
        exact = [exact_squared_shares(self.model, sequence, self.measured) for sequence in sequences]
        for activations in choices or activations_run_once(causal_model(self.model).device):
            fast = self.fast.squared_shares(sequences, activations=activations)
            for sequence, found, wanted in zip(sequences, fast, exact, strict=True):
                compare(self.fast.plan.rules, self._dtype, sequence, found, wanted)

    def may_run_layers_twice(self, sequences: Sequence[TokenSequence]) -> bool:
        """Return whether the norms of these sequences are exact if layers run twice; the log says why not."""
        try:
            self.check(sequences, [Activations.CHECKPOINT])
        except Exception as error:  # a model's own code may raise anything where it is not run as it was written for
            if is_out_of_memory(error):
                raise
            logger.info("long sequences will not be checkpointed: %s", reason(error))
            return False
        return True

    def checked_tokens(self, max_seconds: float) -> int | None:
        """Check one sequence beyond each critical length; return the first length that was not checked, or None."""
        model = causal_model(self.model)
        short = self_check_sequences(model)
        lengths = critical_lengths(model)
        seconds_per_token = self._seconds_per_token(short[0]) if lengths else 0.0
        for length in lengths:  # the long one first, so that others lie far behind in a packed row, too
            sequence = long_sequence(model, length)
            if seconds_per_token * sequence.num_tokens > max_seconds or not self._fits([sequence, *short]):
                logger.warning(
                    "sequences of more than %d tokens are scored by the slow reference: too long to check", length
                )
                return length
        return None

    def _seconds_per_token(self, sequence: TokenSequence) -> float:
        start = time.perf_counter()
        exact_squared_shares(self.model, sequence, self.measured)
        return (time.perf_counter() - start) / sequence.num_tokens

    def _fits(self, sequences: Sequence[TokenSequence]) -> bool:
        try:
            self.check(sequences)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        release_memory()
        return False


def compare(
    rules: Mapping[str, Sequence[str]],
    dtype: torch.dtype,
    sequence: TokenSequence,
    found: SquaredShares,
    wanted: SquaredShares,
) -> None:
    """Check that each rule's norm is the wanted one, within the tolerance of the model's dtype.

    Raises:
        UntrustedNormError: a rule's norm is not.
    """
    found_norms, wanted_norms = _norms(rules, found), _norms(rules, wanted)
    scale = _SMALLEST_SCALE * sqrt(sum(wanted.values()))
    for rule, norm in wanted_norms.items():
        error = abs(found_norms.get(rule, 0.0) - norm) / max(norm, scale)
        if not error <= TOLERANCES[dtype]:
            raise UntrustedNormError(
                f"the norm of {rule} is off by {error:.1e} in a sequence of {sequence.num_tokens} tokens"
                f" in {str(dtype).removeprefix('torch.')}"
            )


def _norms(rules: Mapping[str, Sequence[str]], shares: SquaredShares) -> dict[str, float]:
    """Return rule -> norm, with separate entries for weights and biases."""
    kind_of = {name: _kind(name, rule) for rule, names in rules.items() for name in names}
    squares: defaultdict[str, float] = defaultdict(float)
    for name, share in shares.items():
        squares[kind_of[name]] += share
    return {kind: sqrt(square) for kind, square in squares.items()}


def reason(error: Exception) -> str:
    """Return what to log of an error: its message, after its type unless that is one of the service's own."""
    is_own = type(error).__module__.startswith("vigor_service.")
    return str(error) if is_own else f"{type(error).__name__}: {error}"


def exact_squared_shares(
    model: PreTrainedModel, sequence: TokenSequence, parameters: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """Return ``{name: (gradient.double() ** 2).sum()}`` of the mean loss, with some gradients in memory at once."""
    shares: dict[str, float] = {}
    for part in in_parts(parameters):
        with requiring_grad(model, part.values()):
            nll_T = token_nll(loss_logits(model, sequence), sequence)
            gradients = gradients_of(nll_T.mean(), list(part.values()))
        for name, gradient in zip(part, gradients, strict=True):
            shares[name] = 0.0 if gradient is None else squared_norm(gradient).item()
    return shares


def critical_lengths(model: PreTrainedModel) -> list[int]:
    """Return the lengths, ascending, beyond which the model behaves differently according to its config.

    Lengths that the short sequences exceed, or that no sequence of this model can exceed, are left out.
    """
    config = text_config(model.config)
    named = {length for key, length in _named_integers(config.to_dict()) if _LENGTHS.search(key)}
    original = {int(getattr(module, "original_max_seq_len", 0)) for module in length_dependent(model)}
    longest = getattr(config, "max_position_embeddings", None) or 2**20
    shortest = max(sequence.num_tokens for sequence in self_check_sequences(model))
    return sorted(length for length in named | original if shortest < length + 1 and length + _BEYOND <= longest)


def _named_integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:  # noqa: ANN401 - a config holds anything
    if isinstance(value, dict):
        for name, item in cast("dict[object, object]", value).items():
            yield from _named_integers(item, str(name))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value


def long_sequence(model: PreTrainedModel, length: int) -> TokenSequence:
    """Return a sequence that exceeds a critical length, with the prompt of the short ones."""
    prompt = self_check_sequences(model)[0].prompt_ids
    ids = self_check_ids(model, length + _BEYOND)
    return TokenSequence(prompt, tuple(ids[len(prompt) :]))


def _kind(name: str, rule: str) -> str:
    return f"{rule} ({'biases' if name.endswith('bias') else 'weights'})"


@contextmanager
def _in_float32(model: nn.Module) -> Generator[bool]:
    """Within this context, cast a 16-bit model's weights to float32 if memory allows; restore them afterwards.

    Yields whether they were cast.
    """
    tensors = [tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.dtype in SIXTEEN_BITS]
    device = next(model.parameters()).device
    free = free_bytes(device)
    more_bytes = 2 * sum(tensor.numel() for tensor in tensors)
    if not tensors or (free is not None and 2 * more_bytes > free):
        yield False
        return
    before = [(tensor, tensor.dtype) for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield True
    finally:
        for tensor, dtype in before:
            tensor.data = tensor.data.to(dtype)  # each value came from this dtype: nothing is rounded
        release_memory()
