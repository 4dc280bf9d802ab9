"""Attention over packed sequences, through transformers' attention interface.

Each sequence attends causally within itself only. The implementation has its own registered name, so that the model's
own attention stays unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.model import flash_attention
from vigor_service.engine.model.attention_span import Span, UnsupportedAttentionError, span_of
from vigor_service.engine.ops.typed_torch import split
from vigor_service.engine.rules.copies import copies_for_sequences

IMPLEMENTATION = "vigor_packed"
# Arguments of models that change nothing here: positions are in q and k already, and there is no cache.
_WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}

_packed_batch: ContextVar[PackedBatch] = ContextVar("packed_batch")


@contextmanager
def attending_within(batch: PackedBatch) -> Generator[None]:
    """Within this context, make this batch the one that the model runs on this thread."""
    token = _packed_batch.set(batch)
    try:
        yield
    finally:
        _packed_batch.reset(token)


def current_batch() -> PackedBatch:
    """Return the batch that the model runs on this thread; to be called within ``attending_within``."""
    return _packed_batch.get()


def _attend_packed(
    module: nn.Module,
    query_1HNd: Tensor,
    key_1hNd: Tensor,
    value_1hNd: Tensor,
    attention_mask: Span | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Return the output of causal attention within each sequence, (1, N, H, d), contiguous. ``s_aux``: sinks (H,)."""
    _refuse_unknown(module, attention_mask, dropout, others)
    batch = _packed_batch.get()
    lengths = [rows.stop - rows.start for rows in batch.token_slices]
    span = attention_mask if isinstance(attention_mask, Span) else Span()
    if sliding_window is not None and max(lengths) > sliding_window != span.window:
        raise UnsupportedAttentionError(
            f"{type(module).__name__} asks for a window of {sliding_window}, which its mask does not have"
        )
    if span.chunk is not None and s_aux is not None:
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for sinks in chunks")
    lengths = span.pieces(lengths)
    if softcap is None and s_aux is None and flash_attention.serves(query_1HNd, value_1hNd):
        return flash_attention.attend(query_1HNd, key_1hNd, value_1hNd, lengths, scaling, span.window), None
    sinks = [None] * len(lengths) if s_aux is None else copies_for_sequences(s_aux, len(lengths)).unbind()
    # split, not slices: the backward pass of a slice fills a tensor of all N tokens with zeros
    pieces = [split(tensor, lengths, dim=2) for tensor in (query_1HNd, key_1hNd, value_1hNd)]
    outputs = [
        _attend_one(q, k, v, scaling, span.window, softcap, sinks_H)
        for q, k, v, sinks_H in zip(*pieces, sinks, strict=True)
    ]
    output_1HNd = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output_1HNd.transpose(1, 2).contiguous(), None


def _refuse_unknown(
    module: nn.Module, attention_mask: Span | Tensor | None, dropout: float, others: dict[str, object]
) -> None:
    unknown = [name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT]
    if isinstance(attention_mask, Tensor):
        unknown.append("attention_mask")
    if dropout:
        unknown.append("dropout")
    if not getattr(module, "is_causal", True):
        unknown.append("is_causal=False")
    if unknown:
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {', '.join(unknown)}")


def _attend_one(
    query_1HTd: Tensor,
    key_1hTd: Tensor,
    value_1hTd: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    num_tokens = query_1HTd.shape[2]
    if softcap is not None or sinks_H is not None:
        mask_TT = _causal_mask(num_tokens, window, query_1HTd.device)
        return _plain_attention(query_1HTd, key_1hTd, value_1hTd, mask_TT, scaling, softcap, sinks_H)
    is_windowed = window is not None and num_tokens > window
    mask_TT = _causal_mask(num_tokens, window, query_1HTd.device) if is_windowed else None
    return scaled_dot_product_attention(
        query_1HTd, key_1hTd, value_1hTd, attn_mask=mask_TT, is_causal=mask_TT is None, scale=scaling, enable_gqa=True
    )


def _causal_mask(num_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Return a mask, True where row t may attend: to itself and, with a window of w, to the w - 1 tokens before it."""
    mask_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    return mask_TT if window is None else mask_TT.triu(1 - window)


def _plain_attention(
    query_1HTd: Tensor,
    key_1hTd: Tensor,
    value_1hTd: Tensor,
    mask_TT: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Return ``softmax(softcap tanh(q kᵀ scaling / softcap)) v``, which no fused kernel of torch offers (Gemma 2).

    A sink (gpt-oss) is an additional logit of each row, without a value: it takes a share of the softmax.
    """
    repeats = query_1HTd.shape[1] // key_1hTd.shape[1]
    key_1HTd, value_1HTd = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key_1hTd, value_1hTd))
    scale = query_1HTd.shape[-1] ** -0.5 if scaling is None else scaling
    logits_1HTT = (query_1HTd @ key_1HTd.transpose(2, 3)) * scale
    if softcap is not None:
        logits_1HTT = softcap * torch.tanh(logits_1HTT / softcap)
    logits_1HTT = logits_1HTT.masked_fill(~mask_TT, float("-inf"))
    if sinks_H is not None:
        sinks_1HT1 = sinks_H.to(logits_1HTT.dtype)[None, :, None, None].expand(*logits_1HTT.shape[:3], 1)
        logits_1HTT = torch.cat([logits_1HTT, sinks_1HT1], dim=-1)
    weights_1HTT = logits_1HTT.softmax(-1, dtype=_at_least_float32(logits_1HTT.dtype))[..., : len(mask_TT)]
    return weights_1HTT.to(query_1HTd.dtype) @ value_1HTd


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _span_instead_of_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    device: torch.device,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_others: object,
) -> Span | None:
    """Return the span that a mask would express, for the model to pass on as its mask; None for a causal mask.

    transformers calls this function with what the mask would be made from. ``use_vmap`` says that the model has its own
    mask function.
    """
    is_padded = attention_mask is not None and not bool(attention_mask.all())
    if is_padded or use_vmap or q_length != kv_length:
        raise UnsupportedAttentionError("its mask is of a kind of its own")
    longest = max(current_batch().token_slices, key=lambda rows: rows.stop - rows.start)
    span = span_of(mask_function, longest, local_size, device)
    return None if span == Span() else span


AttentionInterface.register(IMPLEMENTATION, _attend_packed)  # pyright: ignore[reportUnknownMemberType]
AttentionMaskInterface.register(IMPLEMENTATION, _span_instead_of_mask)  # pyright: ignore[reportUnknownMemberType]
