"""Scores without norms, from a forward pass alone: no backward pass runs, and no activations are kept for one."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from vigor_service.engine.norms.op_interception import CompletingLinears
from vigor_service.engine.norms.passes import Passes
from vigor_service.engine.ops.typed_torch import split, to_list
from vigor_service.engine.rules.head import HeadSignals, head_signals
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence


class FastSignals:
    """Scores batches of one model without their norms, in the passes in which the fast path measures norms."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Return ``[exact_signals(model, sequence) for sequence in sequences]``."""
        passes, decoder = self._passes, self._passes.plan.decoder
        batches = passes.batches([item for item in dict.fromkeys(sequences) if item.num_loss_tokens])
        with decoder.prepared():
            prompt_rows = passes.prompt_rows(passes.shared_prompts(batches))

            @torch.no_grad()  # each thread has its own grad mode
            def run_batch(batch: list[TokenSequence]) -> list[tuple[TokenSequence, SequenceScore]]:
                packed = decoder.pack(batch)
                known_rows = prompt_rows.in_batch(batch, packed)
                with decoder.given(packed), CompletingLinears(passes.plan.claims, known_rows):
                    hidden_ND = decoder.hidden_states(packed)
                signals = head_signals(hidden_ND[packed.loss_rows_M], passes.plan.head, packed.targets_M)
                return list(zip(batch, scores_of(signals, packed.loss_slices), strict=True))

            scores = dict(pair for results in passes.map(run_batch, batches) for pair in results)
        return [scores.get(sequence, EMPTY_SCORE) for sequence in sequences]


def scores_of(signals: HeadSignals, loss_slices: Sequence[slice], norms_B: Tensor | None = None) -> list[SequenceScore]:
    """Return the scores of B sequences, in order; all numbers are fetched from the device at once.

    ``norms_B`` are the norms of the gradients of the mean NLL; without it, the norms of the scores are NaN.
    """
    lengths = [rows.stop - rows.start for rows in loss_slices]
    nll_M = signals.nll_M.double()
    columns = [-nll_M, signals.entropy_M, signals.self_certainty_M, nll_M.neg().exp()]
    signals_4M = torch.stack([column.double() for column in columns])
    means_B4 = torch.stack([signals_4T.mean(-1) for signals_4T in split(signals_4M, lengths, dim=1)])
    norms_B = means_B4.new_full((len(lengths),), nan) if norms_B is None else norms_B
    rows, logprobs = to_list(torch.cat([norms_B[:, None], means_B4], dim=1)), to_list(-nll_M)
    return [
        SequenceScore(length, *row, token_logprobs=logprobs[own])
        for length, row, own in zip(lengths, rows, loss_slices, strict=True)
    ]
