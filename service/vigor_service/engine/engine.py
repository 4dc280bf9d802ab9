"""The engine: owns a model, its measured parameters and its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_client.weight_format.lora import lora_scalings
from vigor_service.engine.attribution.attribution import Attribution, attribute_within_memory
from vigor_service.engine.interface import BatchResult, EngineInfo
from vigor_service.engine.memory.activation_policy import Activations
from vigor_service.engine.memory.free_memory import free_bytes
from vigor_service.engine.memory.malloc import HeapTrimming
from vigor_service.engine.memory.out_of_memory import FittingScorer, Score, is_out_of_memory
from vigor_service.engine.memory.token_budget import measure_batch_tokens, peak_memory, trial_sizes
from vigor_service.engine.model.decoder import num_token_ids
from vigor_service.engine.model.parameter_selection import in_parts, measured_parameters
from vigor_service.engine.model.rotary import forget_earlier_lengths
from vigor_service.engine.model.text_parameters import media_token_ids
from vigor_service.engine.model.unwrap import causal_model, text_config
from vigor_service.engine.model_weights import ModelWeights
from vigor_service.engine.norms.check_cache import CheckCache
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.faster_method import FasterMethod, Method
from vigor_service.engine.norms.layout_choice import choose_layout, require_policy_of_text
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.norms.self_check import reason
from vigor_service.engine.norms.signals import FastSignals
from vigor_service.engine.ops import gemm
from vigor_service.engine.ops.hutchinson import SketchVectors
from vigor_service.engine.sequences import (
    EMPTY_SCORE,
    NORM_AND_SIGNALS,
    ScoreParts,
    SequenceScore,
    TokenSequence,
)

logger = logging.getLogger(__name__)


class Engine(ModelWeights):
    """Scores with a transformers model: by the fast path if it passes the self-check, else by the reference.

    - ``norm_probes``: the number of sketch vectors for each matrix. The fast path then estimates the matrices' shares
      of a norm (see ``SketchVectors``), once its exact norms have passed the check. The reference never estimates.
      None: every norm is exact.
    - ``activation_bytes``: the approximate limit, in bytes, of what a forward pass keeps at once; layers run twice to
      stay below it. None: a share of the free memory.
    - ``check_cache`` keeps the outcome of the check. None: each engine checks its model.
    - ``method``: what scores, the rules of the fast path or the reference. None: the faster of the two, as measured on
      the sequences that are scored.

    Raises:
        ValueError: ``parameters`` selects nothing (see ``measured_parameters``), or ``norm_probes`` is not above 0.
        UnscorableModelError: the model cannot score text (see ``layout_choice.py``).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        parameters: str | None = None,
        norm_probes: int | None = None,
        activation_bytes: int | None = None,
        check_cache: CheckCache | None = None,
        method: Method | None = None,
    ) -> None:
        super().__init__(model.eval())
        self._name = name
        require_policy_of_text(model)
        self._measured = measured_parameters(model, parameters)
        sketch = None if norm_probes is None else SketchVectors(self._measured, norm_probes)
        forget_earlier_lengths(model)
        self._fast, self._checked = choose_layout(model, self._measured, check_cache)
        self._has_warned = False
        self._reference = Reference(model, self._measured, most_bytes=activation_bytes)
        if self._fast is not None:
            self._fast.sketch = sketch
            self._fast.max_activation_bytes = activation_bytes
        norms = _Ways(self._score_by(method if sketch is None else "rules"), self._reference.score)
        signals = _Ways(None if self._fast is None else FastSignals(self._fast.passes).score, self._reference.signals)
        self._heap = HeapTrimming()
        self._fitting = FittingScorer(partial(self._score, norms), score_frugally=_frugal_score(self._fast))
        self._fitting_signals = FittingScorer(partial(self._score, signals))
        # Trial batches run by the rules: the reference also needs memory for gradients, and runs only if it is free.
        rules = self._reference.score if self._fast is None else self._fast.score
        self._fitting_batches = FittingScorer(rules, score_frugally=_frugal_score(self._fast))

    @property
    def info(self) -> EngineInfo:
        return describe(self._model, self._measured, self._fast, name=self._name, tied_embeddings=bool(self.aliases()))

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        """Return the scores of the sequences, in their order, under the current weights.

        If they do not fit into memory together, they are scored in parts.

        Raises:
            NoMemoryLeftError: no sequence can be scored, however short.
        """
        result = score_fitting(self._fitting if parts.norm else self._fitting_signals, sequences, parts)
        self._trim_heap()
        return result

    def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return ``attribution.attribute(model, sequence, [measured])``, with some of the gradients in memory at once.

        Raises:
            ValueError: the sequence has no loss tokens.
            NoMemoryLeftError: the attribution does not fit into memory.
        """
        attribution = attribute_within_memory(self._model, sequence, in_parts(self._measured))
        self._trim_heap()
        return attribution

    def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have (``memory/token_budget.py``), and log the result in one line."""
        device, info = self._model.device, self.info
        return measure_batch_tokens(
            lambda sequences: self._fitting_batches.try_together(sequences) is not None,
            sizes=trial_sizes(device),
            max_sequence_tokens=info.max_sequence_tokens,
            vocab_size=info.vocab_size,
            peak=peak_memory(device),
            free_bytes=free_bytes(device),
        )

    def _trim_heap(self) -> None:
        if self._model.device.type == "cpu":
            self._heap.after_batch()

    def _score(self, ways: _Ways, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        if ways.checked is None or any(map(self._is_unchecked, sequences)):
            return ways.reference(sequences)
        try:
            return ways.checked(sequences)
        except Exception as error:  # the model's own code may take a path that the check did not take
            if is_out_of_memory(error):
                raise
            self._warn_once(error)
        return ways.reference(sequences)

    def _score_by(self, method: Method | None) -> Score | None:
        if self._fast is None or method == "reference":
            return None
        packs_on_gpu = self._model.device.type == "cuda" and not self._fast.plan.one_at_a_time
        if method == "rules" or packs_on_gpu:  # one sequence at a time never fills a GPU
            return self._fast.score
        return FasterMethod(self._fast.score, self._reference).score

    def _is_unchecked(self, sequence: TokenSequence) -> bool:
        return self._checked.max_tokens is not None and sequence.num_tokens > self._checked.max_tokens

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            logger.warning("a batch was scored by the reference: %s", reason(error))
            self._has_warned = True


@dataclass(frozen=True, slots=True)
class _Ways:
    """The two ways to compute scores: the one checked when the model was loaded (or None), and the reference."""

    checked: Score | None
    reference: Score


def describe(
    model: PreTrainedModel,
    measured: Mapping[str, nn.Parameter],
    fast: FastNorms | None,
    *,
    name: str,
    tied_embeddings: bool,
    architecture: str | None = None,
) -> EngineInfo:
    """Return what an engine measures of a model, and how; ``architecture`` None: the name of the model's class."""
    inner = causal_model(model)
    return EngineInfo(
        model=name,
        architecture=architecture or type(inner).__name__,
        num_parameters=_num_elements(model.parameters()),
        num_measured_parameters=_num_elements(measured.values()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        max_sequence_tokens=getattr(text_config(inner.config), "max_position_embeddings", None) or 2**20,
        vocab_size=num_token_ids(model),
        tied_embeddings=tied_embeddings,
        layout="single" if fast is None or fast.plan.one_at_a_time else "packed",
        norm_probes=None if fast is None or fast.sketch is None else fast.sketch.num_vectors,
        rules={"exact": list(measured)} if fast is None else fast.plan.rules,
        lora_scalings=lora_scalings(model),
        media_token_ids=media_token_ids(model),
        product_libraries=gemm.CHOICE.counts(),
    )


def score_fitting(fitting: FittingScorer, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
    """Return the scores of the sequences, in their order, with these parts."""
    scored = fitting.score(list(dict.fromkeys(sequences)))
    scores = [scored.scores.get(sequence, EMPTY_SCORE) for sequence in sequences]
    if not parts.token_logprobs:
        scores = [replace(score, token_logprobs=None) for score in scores]
    return BatchResult(scores, too_long=scored.too_long, fitting_tokens=scored.fitting_tokens)


def _num_elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _frugal_score(fast: FastNorms | None) -> Score | None:
    """Return the scorer that uses activation checkpointing; None if no layers can be checkpointed."""
    return partial(fast.score, activations=Activations.CHECKPOINT) if fast is not None and fast.layers else None
