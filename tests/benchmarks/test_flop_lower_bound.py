"""The FLOP lower bound is its formula."""

from __future__ import annotations

import pytest

from benchmarks.flop_lower_bound import Sizes, lower_bound_flops, sizes_of
from tests.support.tiny_models import VOCAB_SIZE, tiny_model
from vigor_service.engine.sequences import TokenSequence

SIZES = Sizes(layer_parameters=1000, head_parameters=600, num_layers=2, attention_width=12)
PROMPT = (1, 2, 3)


def test_one_sequence_costs_what_the_formula_says() -> None:
    sequence = TokenSequence(PROMPT, (4, 5))  # four rows: the last token is a target alone
    assert lower_bound_flops(SIZES, [sequence], prompts_once=False) == 4 * 1000 * 4 + 4 * 600 * 2 + 6 * 2 * 12 * 4 * 5


def test_rows_after_the_last_loss_token_and_masked_targets_cost_nothing() -> None:
    masked = TokenSequence(PROMPT, (4, 5, 6), (True, False, False))
    assert lower_bound_flops(SIZES, [masked], prompts_once=False) == 4 * 1000 * 3 + 4 * 600 * 1 + 6 * 2 * 12 * 3 * 4


def test_a_shared_prompt_goes_forward_once_and_backward_for_each() -> None:
    group = [TokenSequence(PROMPT, (4, 5)), TokenSequence(PROMPT, (6, 7))]
    saved = 2 * 1000 * 3 + 2 * 2 * 12 * 2 * (3 * 4 // 2)  # three rows, and two products of their pairs
    separate = lower_bound_flops(SIZES, group, prompts_once=False)
    assert separate - lower_bound_flops(SIZES, group, prompts_once=True) == saved


def test_different_prompts_share_nothing() -> None:
    group = [TokenSequence(PROMPT, (4, 5)), TokenSequence((3, 2, 1), (6, 7))]
    assert lower_bound_flops(SIZES, group, prompts_once=True) == lower_bound_flops(SIZES, group, prompts_once=False)


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied"])
def test_sizes_count_the_head_once_and_no_lookup_table(family: str) -> None:
    model = tiny_model(family)
    sizes = sizes_of(model)
    tables = 1 if family == "qwen2-tied" else 2
    assert sizes.head_parameters == VOCAB_SIZE * 32
    assert sizes.layer_parameters == model.num_parameters() - tables * VOCAB_SIZE * 32
    assert (sizes.num_layers, sizes.attention_width) == (2, 32)


def test_a_model_with_a_sliding_window_has_no_known_bound() -> None:
    with pytest.raises(ValueError, match="sliding_attention"):
        sizes_of(tiny_model("gemma2"))
