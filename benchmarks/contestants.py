"""The contestants: loops, libraries and the engine, each as a function from a group to its norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from benchmarks.loops import ideal_loop, published_loop
from benchmarks.models import Subject
from benchmarks.per_sample import opacus_norms, vmap_norms
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.malloc import tune_heap
from vigor_service.engine.sequences import TokenSequence
from vigor_service.scheduling.fair_queue import Pool

PUBLISHED, IDEAL, ENGINE = "published loop", "ideal loop", "engine"
LOOPS: dict[str, Callable[[PreTrainedModel, Sequence[TokenSequence]], list[float]]] = {
    PUBLISHED: published_loop,
    IDEAL: ideal_loop,
    "torch.func vmap": vmap_norms,
    "Opacus ghost norms": opacus_norms,
}
CONTESTANTS = (*LOOPS, ENGINE)
Norms = Callable[[Sequence[TokenSequence]], list[float]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of ``CONTESTANTS``; the engine may have a limit on the activations that it keeps."""

    method: str
    max_batch_tokens: int
    activation_mib: int | None = None

    @property
    def name(self) -> str:
        """Its name in a table."""
        return self.method if self.activation_mib is None else f"{self.method}, --activation-mib {self.activation_mib}"

    def prepare(self, subject: Subject) -> Norms:
        """Return a function that scores a group. For the engine, set up this process' heap as in the service."""
        if self.method != ENGINE:
            subject.model.requires_grad_(True)
            return lambda sequences: LOOPS[self.method](subject.model, sequences)
        tune_heap(short_of_memory=self.activation_mib is not None)
        bound = None if self.activation_mib is None else self.activation_mib << 20
        engine = Engine(subject.model, name=subject.name, activation_bytes=bound)
        return lambda sequences: _in_batches(engine, sequences, self.max_batch_tokens)


def _in_batches(engine: Engine, sequences: Sequence[TokenSequence], max_batch_tokens: int) -> list[float]:
    """Score in the batches that the service would form; return norms in the given order."""
    pool: Pool[int] = Pool()
    pool.add(0, sequences)
    norms: dict[TokenSequence, float] = {}
    while len(pool):
        batch = list(pool.take_batch(max_batch_tokens))
        norms |= {s: score.grad_norm for s, score in zip(batch, engine.score(batch).scores, strict=True)}
    return [norms[sequence] for sequence in sequences]
