"""The self-check that the fast path gives a sharded model's exact norms, with all ranks agreed on each step.

Every rank runs the same sequences by both methods. All ranks act on what any of them finds: how long a pass takes, and
whether it can be trusted. A 16-bit model is checked only in its own dtype.
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

_MAX_SECONDS = 60.0  # that the reference may take for one long sequence
_ADVICE = "score with the whole model on one device, without --shard (VIGOR_SHARD), where a reference takes its place"


def choose_layout(model: ShardedModel, ranks: Ranks) -> tuple[FastNorms, Trust]:
    """Return the fast path in the first layout that proves exact, and what it proved exact for; the same on all ranks.

    Raises:
        UnshardableModelError: no layout proved exact; the message says why.
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
    """A rank found that the fast path cannot be used; all ranks raise this error with that rank's message."""


def _agreed(ranks: Ranks, compute: Callable[[], R]) -> R:
    """Return ``compute()`` if it succeeds on all ranks; else raise the reason of one rank on all of them."""
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
    """The check of one fast path of a sharded model against the reference."""

    def __init__(self, fast: FastNorms, model: ShardedModel, ranks: Ranks) -> None:
        self._fast = fast
        self._model = model
        self._ranks = ranks
        self._short = self_check_sequences(model.root)

    def trust(self) -> Trust:
        """Check short sequences, then one beyond each critical length; return what the fast path proved exact for.

        Raises:
            _DisagreedError: the norms of a sequence differ from the reference's.
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
        """Return the first critical length beyond which a check would take too long; None if all were checked."""
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
