"""Whether the fast path gives a sharded model's exact norms: the self-check, with all ranks agreed on each step.

Every rank runs the same sequences by both methods. What one rank finds, all of them go by: how long a pass takes, and
whether it can be trusted. A 16-bit model is checked in its own dtype alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from vigor_service.engine.memory.activation_policy import Activations, activations_run_once
from vigor_service.engine.model.decoder import Layout
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import LAYOUTS, UnsupportedModelError, self_check_sequences
from vigor_service.engine.norms.self_check import (
    SquaredShares,
    Trust,
    UntrustedNormError,
    compare,
    critical_lengths,
    long_sequence,
)
from vigor_service.engine.sequences import TokenSequence
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.reference import exact_squared_shares
from vigor_service.engine.sharding.units import ShardedModel, UnshardableModelError, raise_first

logger = logging.getLogger(__name__)
R = TypeVar("R")

_MAX_SECONDS = 60.0  # that one long sequence may take the reference
_ADVICE = "score with the whole model on one device, without --shard (VIGOR_SHARD), where a reference takes its place"


def choose_layout(model: ShardedModel, ranks: Ranks) -> tuple[FastNorms, Trust]:
    """Return the fast path in the first layout that proves exact, and for what it did; the same on all ranks.

    Raises:
        UnshardableModelError: none did; says why.
    """
    why = ""
    for layout in LAYOUTS:
        try:
            fast = _agreed(ranks, lambda layout=layout: model.run_alike(lambda: _fast_norms(model, layout)))
            return fast, _Check(fast, model, ranks).trust()
        except _DisagreedError as error:
            why = str(error)
            logger.warning("the %s layout is not used: %s", layout, why)
    raise UnshardableModelError(f"the rules do not give this model's norms ({why}): {_ADVICE}")


class _DisagreedError(Exception):
    """A rank found that the fast path does not serve; the message is that rank's, on all of them."""


def _agreed(ranks: Ranks, compute: Callable[[], R]) -> R:
    """Return ``compute()`` if it went well on all ranks."""
    result: R | None = None
    why: str | None = None
    try:
        result = compute()
    except (UnsupportedModelError, UntrustedNormError) as error:
        why = str(error)
    for found in ranks.exchange(why):
        if found is not None:
            raise _DisagreedError(found)
    return cast("R", result)


def _fast_norms(model: ShardedModel, layout: Layout) -> FastNorms:
    fast = FastNorms(model.root, model.measured, layouts=[layout], sharded_layers=model.layers)
    if fast.plan.fallback:
        names = ", ".join(list(fast.plan.fallback)[:5])
        raise UnsupportedModelError(f"no rule measures {names}")
    return fast


class _Check:
    """One fast path of a sharded model, beside the reference."""

    def __init__(self, fast: FastNorms, model: ShardedModel, ranks: Ranks) -> None:
        self._fast = fast
        self._model = model
        self._ranks = ranks
        self._short = self_check_sequences(model.root)

    def trust(self) -> Trust:
        """Check short sequences, then one beyond each critical length.

        Raises:
            _DisagreedError: one has other norms.
        """
        self._check(self._short, activations_run_once(self._model.root.device))
        return Trust(self._checked_tokens(), self._may_run_layers_twice())

    def _check(self, sequences: Sequence[TokenSequence], choices: Sequence[Activations]) -> None:
        exact = [exact_squared_shares(self._model, self._ranks, sequence) for sequence in sequences]
        for activations in choices:
            found = self._found(sequences, activations)
            _agreed(self._ranks, lambda found=found: self._compare(sequences, found, exact))

    def _found(self, sequences: Sequence[TokenSequence], activations: Activations) -> list[SquaredShares]:
        found: dict[TokenSequence, SquaredShares] = {}
        for batch in self._fast.passes.batches(sequences):
            shares = partial(self._fast.squared_shares, batch, activations=activations)
            outcome = self._model.run_pass("norms", shares)
            raise_first(each.failure for each in self._ranks.exchange(replace(outcome, result=None)))
            found |= zip(batch, outcome.result or (), strict=True)
        return [found[sequence] for sequence in sequences]

    def _compare(
        self, sequences: Sequence[TokenSequence], found: Sequence[SquaredShares], exact: Sequence[SquaredShares]
    ) -> None:
        for sequence, own, wanted in zip(sequences, found, exact, strict=True):
            compare(self._fast.plan.rules, self._model.root.dtype, sequence, own, wanted)

    def _may_run_layers_twice(self) -> bool:
        try:
            self._check(self._short, [Activations.CHECKPOINT])
        except (_DisagreedError, RuntimeError) as error:
            logger.info("long sequences will not be checkpointed: %s", error)
            return False
        return True

    def _checked_tokens(self) -> int | None:
        """Return the first critical length beyond which nothing could be checked in time; None: all could."""
        lengths = critical_lengths(self._model.root)
        seconds_per_token = self._seconds_per_token() if lengths else 0.0
        for length in lengths:
            sequence = long_sequence(self._model.root, length)
            if seconds_per_token * sequence.num_tokens > _MAX_SECONDS:
                logger.warning("sequences of more than %d tokens are not scored: too long to check", length)
                return length
            self._check([sequence, *self._short], activations_run_once(self._model.root.device))
        return None

    def _seconds_per_token(self) -> float:
        start = time.perf_counter()
        exact_squared_shares(self._model, self._ranks, self._short[0])
        return max(self._ranks.exchange(time.perf_counter() - start)) / self._short[0].num_tokens
