"""The sweep sees what it must not miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.sweep.check import Outcome, check
from tests.sweep.double_loop import expected_score
from tests.sweep.families import Family, families, tiny_policy
from tests.sweep.report import failures, line, summary
from tests.sweep.sequences import sequences
from tests.sweep.sizes import WINDOW
from vigor_service.engine.engine import Engine
from vigor_service.engine.interface import BatchResult
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence

LLAMA = families()["llama"]


class _Changed(Engine):
    """An engine whose norms are off by a thousandth for sequences longer than a window."""

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        result = super().score(sequences, parts)
        scores = [
            replace(score, grad_norm=score.grad_norm * (1.001 if sequence.num_tokens > WINDOW else 1.0))
            for sequence, score in zip(sequences, result.scores, strict=True)
        ]
        return replace(result, scores=scores)


def _ends(_model: PreTrainedModel) -> Engine:
    raise IndexError("of a model's own code")


def test_a_norm_that_is_off_for_long_sequences_is_wrong() -> None:
    outcome = check(LLAMA, lambda model: _Changed(model, name="changed", method="rules"))
    assert outcome.verdict == "wrong"
    assert outcome.error == pytest.approx(1e-3, rel=0.01)


def test_an_error_that_is_not_the_services_own_is_a_crash() -> None:
    outcome = check(LLAMA, _ends)
    assert outcome.verdict == "crashed"
    assert "of a model's own code (test_check.py" in outcome.detail


def test_a_configuration_that_does_not_fit_is_told() -> None:
    assert check(replace(LLAMA, changes={"num_attention_heads": 5})).verdict == "not built"


def test_the_summary_counts_and_what_is_not_good_fails() -> None:
    outcomes = [
        Outcome("one", "One", "exact-packed", "", 2e-6),
        Outcome("two", "Two", "wrong", "exact-packed, off", 0.1),
        Outcome("three", "Three", "crashed", "no result after 5 s"),
        Outcome("four", "Four", "refused", "needs pixels"),
    ]
    assert [outcome.family for outcome in failures(outcomes)] == ["two", "three"]
    assert summary(outcomes) == (
        "4 families: 1 exact-packed, 1 wrong, 1 crashed, 1 refused; exact ones are off by 2e-06 (median), 2e-06 (most)"
    )
    assert line(outcomes[1]).split() == ["wrong", "1e-01", "two", "exact-packed,", "off"]


# ------------------------------------------------------------------------------------ the loop in float64


def test_the_loop_is_that_of_a_model_that_was_made_in_float64() -> None:
    model = tiny_policy(LLAMA)
    sequence = sequences(0)[0]
    expected = expected_score(model, sequence.token_ids, sequence.loss_positions())
    assert model.dtype == torch.float32  # it has a copy
    score = exact_score(model.double(), sequence, dict(model.named_parameters()))
    assert expected.grad_norm == pytest.approx(score.grad_norm, rel=1e-6)  # whose own norms and logits are in float32
    assert expected.mean_logprob == pytest.approx(score.mean_logprob, rel=1e-6)


def test_what_a_model_was_asked_before_changes_nothing() -> None:
    model = tiny_policy(families()["llama, dynamic"])
    short, long = (sequences(0)[index] for index in (5, 2))
    before = expected_score(model, short.token_ids, short.loss_positions())
    with torch.no_grad():
        model(input_ids=torch.tensor([long.token_ids]))
    assert expected_score(tiny_policy(families()["llama, dynamic"]), short.token_ids, short.loss_positions()) == before
    assert expected_score(model, long.token_ids, long.loss_positions()).grad_norm > 0


class _Choosing(nn.Module):
    """Takes the larger of two features that are almost the same."""

    def __init__(self, difference: float) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 2)
        self.table.weight.data[:] = torch.tensor([1.0, 1.0 + difference])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:  # noqa: ARG002
        chosen = self.table(input_ids).topk(1).values
        return CausalLMOutput(logits=chosen * torch.arange(8.0))  # pyright: ignore[reportArgumentType] - a tensor is one


@pytest.mark.parametrize("difference", [0.5, 1e-6])
def test_choices_that_are_near_ties_are_seen(difference: float) -> None:
    expected = expected_score(_Choosing(difference), [1, 2, 3], [0, 1])
    assert expected.closest_choice == pytest.approx(difference / (2 + difference), rel=0.1)


class _Random(_Choosing):
    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:
        logits = super().forward(input_ids, use_cache).logits
        return CausalLMOutput(logits=logits * torch.rand(()))  # pyright: ignore[reportArgumentType, reportOptionalOperand]


def test_a_model_that_answers_otherwise_each_time_has_no_expected_score() -> None:
    one, other = (expected_score(_Random(0.5), [1, 2, 3], [0, 1]) for _ in range(2))
    assert one != other


# ------------------------------------------------------------------------------------------- what is scored


def test_sequences_exceed_the_windows_share_prompts_and_lie_beside_short_ones() -> None:
    scored = sequences(0)
    assert max(sequence.num_tokens for sequence in scored) > 2 * WINDOW
    assert min(sequence.num_tokens for sequence in scored) == 2
    assert len({sequence.prompt_ids for sequence in scored}) == len(scored) - 2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mistral", ["sliding_window"]),
        ("gemma3_text", ["sliding_window"]),
        ("llama4_text", ["attention_chunk_size"]),
        ("deepseek_v32", ["index_topk"]),
        ("modernbert-decoder", ["local_attention"]),
        ("recurrent_gemma", ["attention_window_size"]),
        ("doge", ["keep_window_size"]),
    ],
)
def test_windows_chunks_and_choices_are_shorter_than_the_sequences(name: str, settings: list[str]) -> None:
    config = tiny_policy(families()[name]).config
    longest = max(sequence.num_tokens for sequence in sequences(0))
    assert all(0 < getattr(config, setting) < longest for setting in settings)


@pytest.mark.parametrize(
    "name", ["gemma3_text", "qwen3_next", "deepseek_v4", "granitemoehybrid", "lfm2", "olmo_hybrid"]
)
def test_a_layer_of_each_kind_is_there(name: str) -> None:
    family = families()[name]
    default = _default_layer_types(family)
    assert set(tiny_policy(family).config.layer_types) == default


def _default_layer_types(family: Family) -> set[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return set(CONFIG_MAPPING[family.model_type]().layer_types)


def test_the_models_are_small() -> None:
    assert sum(parameter.numel() for parameter in tiny_policy(LLAMA).parameters()) < 100_000
