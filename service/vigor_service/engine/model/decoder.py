"""A model's decoder, from ids to final hidden states, in one of two layouts.

In the packed layout, sequences lie end to end and attend through packed attention. In the single layout, one sequence
runs under the model's own attention or other token mixer. In both, experts run as operations that a rule recognises.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.batching.packing import PackedBatch, pack
from vigor_service.engine.model.experts import experts_as_operations
from vigor_service.engine.model.fused_rms_norm import fused
from vigor_service.engine.model.implementations import running_under
from vigor_service.engine.model.packed_attention import IMPLEMENTATION, attending_within, current_batch
from vigor_service.engine.model.rotary import each_sequence_alone
from vigor_service.engine.model.unwrap import text_config
from vigor_service.engine.sequences import TokenSequence

Layout = Literal["packed", "single"]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the decoder layers in the order in which they run; None if they cannot be found."""
    num_layers = getattr(text_config(model.config), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))  # outer modules first
    return next((layers for layers in lists if len(layers) == num_layers), None)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The part of ``model`` that ends before its output head."""

    model: PreTrainedModel
    module: nn.Module
    layout: Layout
    norms: Mapping[nn.Module, float] = field(default_factory=dict[nn.Module, float])  # fused RMSNorm -> its epsilon
    length_dependent: Sequence[nn.Module] = ()  # modules whose output for a token depends on the length

    @contextmanager
    def prepared(self) -> Generator[None]:
        """Within this context, let the model run as the layout requires; restore the model afterwards."""
        with experts_as_operations(self.module), fused(self.norms), self._packed():
            yield

    @contextmanager
    def _packed(self) -> Generator[None]:
        if self.layout == "single":
            yield
            return
        with (
            running_under(IMPLEMENTATION, "attn", self.module),
            each_sequence_alone(self.length_dependent, lambda: current_batch().token_slices),
        ):
            yield

    def pack(self, sequences: Sequence[TokenSequence]) -> PackedBatch:
        """Return the sequences packed end to end.

        They keep the tokens after their last loss position if these may affect earlier tokens. In the single layout
        they may do so through the model's own token mixer, such as an indexer that keeps the best keys of a sequence.
        In the packed layout they do so through the length of the sequence, in length-dependent modules.
        """
        whole = self.layout == "single" or bool(self.length_dependent)
        return pack(sequences, self.model.device, whole=whole)

    def given(self, batch: PackedBatch) -> AbstractContextManager[None]:
        """On this thread, tell the model which batch it runs within this context; to be used within ``prepared``.

        Raises:
            ValueError: the layout is single and the batch holds several sequences.
        """
        if self.layout == "single" and batch.num_sequences != 1:
            raise ValueError(f"a batch of {batch.num_sequences} sequences in the single layout")
        return attending_within(batch) if self.layout == "packed" else nullcontext()

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Return the final hidden states (N, D); to be called within ``prepared`` and ``given``."""
        # in the single layout the model itself counts positions, as in the reference
        positions = {"position_ids": batch.position_ids_1N} if self.layout == "packed" else {}
        output = self.module(input_ids=batch.input_ids_1N, use_cache=False, **positions)
        return output.last_hidden_state[0].to(self.model.dtype)  # Mamba keeps its residual in float32


def num_token_ids(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding: every valid token id is below it."""
    table_VD: Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType] - PEFT's is no parameter
    return table_VD.shape[0]
