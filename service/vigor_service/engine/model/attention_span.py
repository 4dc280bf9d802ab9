"""Which tokens before it a token attends to, read from the mask that the model itself would make.

transformers describes a mask by a function of two positions. Packed attention needs no mask, only what is behind it:
all tokens of the sequence, a window, or a chunk. What is none of these is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_ROWS = 64  # of a mask that are compared with a span's; the last is one of them


class UnsupportedAttentionError(Exception):
    """The model asks for something that packed attention does not do."""


@dataclass(frozen=True, slots=True)
class Span:
    """The last ``window`` tokens, itself included; or those of its own chunk; else all before it, itself included."""

    window: int | None = None
    chunk: int | None = None

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether the token at position ``query`` attends to that at ``key``, both counted in the sequence."""
        allowed = key <= query
        if self.window is not None:
            allowed = allowed & (key > query - self.window)
        if self.chunk is not None:
            allowed = allowed & (key // self.chunk == query // self.chunk)
        return allowed

    def pieces(self, lengths: list[int]) -> list[int]:
        """Return the lengths of the runs of tokens that attend to one another: sequences, or their chunks."""
        if self.chunk is None:
            return lengths
        starts = [range(0, length, self.chunk) for length in lengths]
        return [min(self.chunk, length - start) for length, own in zip(lengths, starts, strict=True) for start in own]


def span_of(mask_function: Callable[..., Tensor], rows: slice, local_size: int | None, device: torch.device) -> Span:
    """Return the span that equals ``mask_function(batch, head, query, key)`` on these rows of a packed batch.

    ``local_size`` is what transformers says of a window or a chunk.

    Raises:
        UnsupportedAttentionError: none does.
    """
    num_tokens = rows.stop - rows.start
    query_Q1 = torch.linspace(0, num_tokens - 1, min(num_tokens, _MAX_ROWS), device=device).long()[:, None]
    key_1K = torch.arange(num_tokens, device=device)[None]
    zero = torch.zeros((), dtype=torch.long, device=device)
    mask_QK = mask_function(zero, zero, query_Q1 + rows.start, key_1K + rows.start)
    local = [] if local_size is None else [Span(window=local_size), Span(chunk=local_size)]
    for span in [Span(), *local]:
        if torch.equal(span.allows(query_Q1, key_1K), mask_QK):
            return span
    raise UnsupportedAttentionError("its mask is neither causal, nor a window, nor made of chunks")
