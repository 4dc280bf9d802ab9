"""The span of earlier tokens that a token attends to, read from the mask that the model itself would make.

transformers describes a mask by a function of two positions. Packed attention needs no mask, only its kind: all earlier
tokens of the sequence, a window, or a chunk. Any other mask is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_ROWS = 64  # rows of a mask that are compared with a span's, the last row included


class UnsupportedAttentionError(Exception):
    """The model asks for something that packed attention does not do."""


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens that a token attends to: itself and all before it, unless ``window`` or ``chunk`` limits them.

    ``window``: only the last ``window`` tokens, itself included. ``chunk``: only the tokens of its own chunk, where
    each chunk has ``chunk`` tokens.
    """

    window: int | None = None
    chunk: int | None = None

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether the token at position ``query`` of a sequence attends to the token at position ``key``."""
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

    ``local_size`` is the size of a window or a chunk, as transformers gives it.

    Raises:
        UnsupportedAttentionError: no span equals it.
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
