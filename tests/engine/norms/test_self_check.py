"""The check at load sees every kind of fault in the fast path, one planted at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.engine.cases import with_each_type
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.model import packed_attention, rotary
from vigor_service.engine.model.attention_span import Span
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.self_check import Trust, check, critical_lengths
from vigor_service.engine.rules import affine, copies, embedding, experts, head_shares, linear

WINDOW_LENGTH = 30  # more than the short sequences of the check have
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 40,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [4.0, 6.0, 8.0, 10.0],
    },
}


def dropped(place: Any, name: str) -> AbstractContextManager[object]:  # noqa: ANN401 - a module or a class
    """Plant a fault: what this function returns counts nothing."""
    own: Callable[..., Tensor] = getattr(place, name)
    return patch.object(place, name, lambda *args, **kwargs: torch.zeros_like(own(*args, **kwargs)))


@contextmanager
def cross_term_dropped() -> Iterator[None]:
    own = head_shares.HeadShares.tied_rows_UD

    def no_rows(shares: head_shares.HeadShares) -> Tensor | None:
        rows_UD = own(shares)
        return None if rows_UD is None else torch.zeros_like(rows_UD)

    with patch.object(head_shares.HeadShares, "tied_rows_UD", no_rows):
        yield


@contextmanager
def longest_sequence_decides() -> Iterator[None]:
    """Plant a fault: a packed row has the frequencies of its longest sequence, as transformers does it."""

    def run_whole(forward: Callable[..., Any], _slices: object, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return forward(*args, **options)

    with patch.object(rotary, "_run_each", run_whole):
        yield


FAULTS: dict[str, tuple[str, dict[str, Any], Callable[[], AbstractContextManager[object]], str]] = {
    "norm weights": ("qwen2", {}, lambda: dropped(affine, "_products"), "affine (weights)"),
    "linear weights": ("qwen2", {}, lambda: dropped(linear, "weight_shares"), "linear (weights)"),
    "linear biases": ("qwen2", {}, lambda: dropped(linear, "row_sum_shares"), "linear (biases)"),
    "norm biases": ("gpt2", {}, lambda: dropped(affine, "row_sum_shares"), "affine"),
    "embedding": ("llama", {}, lambda: dropped(embedding.DistinctIds, "sum_sequences"), "embedding (weights)"),
    "head": ("llama", {}, lambda: dropped(head_shares, "_weight_share"), "head (weights)"),
    "head bias": ("gptj", {}, lambda: dropped(head_shares, "_bias_share"), "head (biases)"),
    "cross term": ("qwen2-tied", {}, cross_term_dropped, "tied embedding and head (weights)"),
    "experts": ("qwen3_moe", {}, lambda: dropped(experts, "weight_share"), "experts (weights)"),
    "biases of experts": ("gpt_oss", {}, lambda: dropped(experts, "_bias_share"), "experts (biases)"),
    "sinks": ("gpt_oss", {}, lambda: dropped(copies, "squared_shares"), "copy for each sequence (weights)"),
    "window": (
        "mistral",
        {"sliding_window": WINDOW_LENGTH},
        lambda: patch.object(packed_attention, "span_of", lambda *_: Span()),
        "asks for a window of 30, which its mask does not have",
    ),
    "window in the mask alone": (
        "qwen2_moe",
        {"sliding_window": WINDOW_LENGTH, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
        lambda: patch.object(packed_attention, "span_of", lambda *_: Span()),
        "is off by",
    ),
    "longrope": ("phi3", LONGROPE, longest_sequence_decides, "is off by"),
}


# In float32 every fault; in bfloat16 one that is seen there, one that is seen in float32 alone, and one of the mask.
QUICK_FAULTS = {torch.float32: FAULTS, torch.bfloat16: {"linear weights", "cross term", "window"}}
# A bfloat16 model is checked in both types; in float32, test_model_table loads the models that overrule no setting.
QUICK_MODELS = {
    torch.float32: {"window", "window in the mask alone", "longrope"},
    torch.bfloat16: {"norm weights", "norm biases", "cross term", "biases of experts", "window", "longrope"},
}
EACH_MODEL_ONCE = {repr(FAULTS[fault][:2]): fault for fault in reversed(FAULTS)}.values()


@pytest.mark.parametrize(("fault", "dtype"), with_each_type(QUICK_FAULTS, FAULTS))
def test_a_planted_fault_is_seen_at_load_and_named(
    fault: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    family, overrides, plant, name = FAULTS[fault]
    model = tiny_model(family, dtype=dtype, **overrides)
    with plant(), caplog.at_level(logging.WARNING):
        engine = Engine(model, name="tiny")
    assert "the packed layout is not used: " in caplog.text
    assert name in caplog.text
    assert engine.info.layout == "single"


@pytest.mark.parametrize(("fault", "dtype"), with_each_type(QUICK_MODELS, EACH_MODEL_ONCE))
def test_without_a_fault_the_same_models_are_packed(fault: str, dtype: torch.dtype) -> None:
    family, overrides, _, _ = FAULTS[fault]
    assert Engine(tiny_model(family, dtype=dtype, **overrides), name="tiny").info.layout == "packed"


def test_a_16_bit_model_has_its_own_weights_again_after_the_check() -> None:
    model = tiny_model("gemma2", dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine(model, name="tiny")
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_critical_lengths_are_those_of_the_config_that_short_sequences_do_not_exceed() -> None:
    assert critical_lengths(tiny_model("mistral", sliding_window=100)) == [100]
    assert critical_lengths(tiny_model("mistral", sliding_window=8)) == []
    assert critical_lengths(tiny_model("mistral", sliding_window=250)) == []  # no sequence of this model is longer
    assert critical_lengths(tiny_model("phi3", **LONGROPE)) == [40]


def test_lengths_that_take_too_long_to_check_are_left_to_the_reference() -> None:
    model = tiny_model("mistral", sliding_window=100)
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)
    assert check(fast, model, parameters, max_seconds=0.0) == Trust(max_tokens=100, layers_run_twice=True)
    assert check(fast, model, parameters) == Trust(max_tokens=None, layers_run_twice=True)
