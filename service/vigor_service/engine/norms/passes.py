"""Passes of several sequences through the decoder: their batches, their threads, and the prompts that run only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vigor_service.engine.batching.cpu_workers import Workers
from vigor_service.engine.batching.microbatches import TOKENS_AT_FULL_RATE, queues, small_batches
from vigor_service.engine.batching.packing import pack_prompts
from vigor_service.engine.batching.shared_prefixes import Prompt, PromptRows, shared_prompts
from vigor_service.engine.norms.op_interception import RecordingLinears
from vigor_service.engine.norms.plan import Plan
from vigor_service.engine.sequences import TokenSequence

R = TypeVar("R")


class Passes:
    """Divides sequences into passes through the decoder of one model, as its plan allows.

    ``in_lockstep``: other processes run every pass together with this one. Passes then run one after the other, without
    additional passes that only some of the processes need.
    """

    def __init__(self, plan: Plan, device: torch.device, *, in_lockstep: bool = False) -> None:
        self.plan = plan
        self._device = device
        self._in_lockstep = in_lockstep
        self._workers = Workers() if device.type == "cpu" and not in_lockstep else None

    def batches(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        """Return the sequences in batches, each of which shares a pass."""
        if self.plan.one_at_a_time:
            return [[sequence] for sequence in sequences]
        if self._workers is None:
            return [list(sequences)]
        return small_batches(sequences, num_tokens=TOKENS_AT_FULL_RATE)

    def num_at_once(self, batches: Sequence[list[TokenSequence]]) -> int:
        """Return how many of the batches run at the same time."""
        if self._workers is None or self.plan.one_at_a_time:
            return 1  # code that no rule knows may change the model while it runs, as PEFT does for experts
        return min(self._workers.count, len(batches))

    def map(self, function: Callable[[list[TokenSequence]], R], batches: Sequence[list[TokenSequence]]) -> list[R]:
        """Return ``list(map(function, batches))`` in any order; with workers, several batches run at a time."""
        if self._workers is None or self.num_at_once(batches) == 1:
            return list(map(function, batches))
        results = self._workers.run(function, queues(batches, num_queues=self._workers.count))
        return [result for queue in results for result in queue]

    def shared_prompts(self, batches: Sequence[list[TokenSequence]]) -> list[Prompt]:
        """Return the prompts that run once; their rows in all layers are kept until the batches are done."""
        decoder = self.plan.decoder
        if self._device.type != "cpu" or decoder.layout != "packed" or decoder.length_dependent or self._in_lockstep:
            return []
        return shared_prompts([sequence for batch in batches for sequence in batch])

    @torch.no_grad()
    def prompt_rows(self, prompts: Sequence[Prompt]) -> PromptRows:
        """Return the linear layers' outputs for these prompts; to be called within the decoder's ``prepared``."""
        if not prompts:
            return PromptRows({}, {})
        batch = pack_prompts(prompts, self._device)
        recording = RecordingLinears(self.plan.claims)
        with self.plan.decoder.given(batch), recording:
            self.plan.decoder.hidden_states(batch)
        return PromptRows(dict(zip(prompts, batch.token_slices, strict=True)), recording.outputs)
