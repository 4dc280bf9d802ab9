"""Which layout a model gets, and why."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.support.tiny_models import tiny_model
from vigor_service.engine.batching.packing import pack
from vigor_service.engine.model.decoder import Decoder
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.plan import (
    UnsupportedModelError,
    _integers,
    _single_sequence,
    make_plan,
    self_check_sequences,
)
from vigor_service.engine.sequences import TokenSequence


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "BloomModel does not attend through transformers' attention interface"),
        ("mamba", "tokens of one packed sequence reach another"),
        ("falcon_h1", "tokens of one packed sequence reach another"),
    ],
)
def test_a_model_that_cannot_be_packed_runs_one_sequence_at_a_time_and_the_log_says_why(
    family: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(family).requires_grad_(False)
    with caplog.at_level(logging.INFO, "vigor_service"):
        plan = make_plan(model, measured_parameters(model))
    assert plan.decoder.layout == "single"
    assert plan.one_at_a_time
    assert reason in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_leak_between_sequences_that_logits_would_not_show_is_refused(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype).requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda _module, _inputs, output: output + 1e-3 * output.roll(1, 1))
    with pytest.raises(UnsupportedModelError, match="reach another"):
        make_plan(model, measured_parameters(model), ["packed"])


def test_the_single_layout_refuses_several_sequences() -> None:
    model = tiny_model("bloom")
    batch = pack([TokenSequence((1,), (2,)), TokenSequence((3,), (4,))], torch.device("cpu"))
    with (
        pytest.raises(ValueError, match="2 sequences in the single layout"),
        Decoder(model, model.get_submodule("transformer"), "single").given(batch),
    ):
        pass


@pytest.mark.parametrize("num_heads", [8, 11, 12])
def test_either_trace_has_as_many_tokens_as_no_size_of_the_model(num_heads: int) -> None:
    model = tiny_model("qwen3", num_attention_heads=num_heads, num_key_value_heads=1)
    sizes = set(_integers(model.config.to_dict()))
    assert pack(self_check_sequences(model), torch.device("cpu")).num_tokens not in sizes
    assert pack([_single_sequence(model)], torch.device("cpu"), whole=True).num_tokens not in sizes
    plan = make_plan(model.requires_grad_(False), measured_parameters(model))
    assert not plan.fallback
