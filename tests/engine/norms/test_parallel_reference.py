"""The reference on several threads, each with a replica of the model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.cases import difficult_sequences, largest_error, reference
from tests.engine.norms.test_fast import with_lora
from tests.support.tiny_models import tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.norms.replicas import replica


def at_once(model: Any, **options: Any) -> Reference:  # noqa: ANN401 - transformers or PEFT
    return Reference(model.eval(), measured_parameters(model), num_threads=2, **options)


@pytest.mark.parametrize("family", ["llama", "qwen2-tied", "gpt2", "mixtral", "bloom", "gemma2"])
def test_several_at_once_have_the_scores_that_each_has_alone(family: str) -> None:
    model = tiny_model(family)
    sequences = difficult_sequences()
    expected = reference(model, sequences, measured_parameters(model))
    assert largest_error(at_once(model).score(sequences), expected) <= 1e-6


def test_adapters_are_measured_at_once_too() -> None:
    model = with_lora(tiny_model("llama"))
    sequences = difficult_sequences()
    expected = reference(model, sequences, measured_parameters(model))
    assert largest_error(at_once(model).score(sequences), expected) <= 1e-6


class KeepsState(nn.Module):
    """Scales by what it has just put on itself; two threads meet between."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self._meet = barrier.wait
        self.scale = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> KeepsState:
        return memo.setdefault(id(self), type(self)(self._meet.__self__))  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden: Tensor) -> Tensor:
        self.scale = float(hidden.shape[1])
        self._meet()
        return hidden * self.scale


def test_what_a_model_keeps_on_its_modules_is_seen_by_one_thread_alone() -> None:
    sequences = difficult_sequences()[1:3]  # of 2 and of 43 tokens
    alone, together = threading.Barrier(1), threading.Barrier(2, timeout=60)
    expected = at_once(stateful_model(alone))
    expected = [expected.score([sequence])[0] for sequence in sequences]
    assert largest_error(at_once(stateful_model(together)).score(sequences), expected) <= 1e-6


def test_without_a_replica_the_threads_would_disturb_each_other() -> None:
    sequences = difficult_sequences()[1:3]
    alone, together = threading.Barrier(1), threading.Barrier(2, timeout=60)
    expected = at_once(stateful_model(alone))
    expected = [expected.score([sequence])[0] for sequence in sequences]
    shared = at_once(stateful_model(together))
    shared._models *= 2
    assert largest_error(shared.score(sequences), expected) > 1e-3


def stateful_model(barrier: threading.Barrier) -> nn.Module:
    model = tiny_model("llama")
    layer = model.model.layers[0]
    layer.mlp = nn.Sequential(layer.mlp, KeepsState(barrier))
    return model


def test_a_replica_has_the_weights_of_its_model_also_after_they_change() -> None:
    model = tiny_model("qwen2-tied")
    other = replica(model)
    assert all(left is right for left, right in zip(other.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        other.get_parameter("model.embed_tokens.weight").mul_(2)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)
    assert other.lm_head.weight is other.get_input_embeddings().weight


def test_a_replica_shares_buffers_of_the_checkpoint_and_has_others_of_its_own() -> None:
    model = tiny_model("llama")
    model.register_buffer("saved", torch.ones(2))
    other = replica(model)
    assert other.saved is model.saved
    assert other.model.rotary_emb.inv_freq is not model.model.rotary_emb.inv_freq


def test_a_model_that_cannot_be_copied_runs_on_one_thread(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    vars(model)["lock"] = threading.Lock()
    several = at_once(model)
    sequences = difficult_sequences()
    with caplog.at_level("INFO"):
        scores = several.score(sequences)
    assert "cannot be copied" in caplog.text
    assert several.num_lanes == 1
    assert largest_error(scores, reference(model, sequences, measured_parameters(model))) <= 1e-6


@pytest.mark.parametrize(
    ("free_share", "most_share", "expected"), [(9, None, 2), (1.5, None, 1), (0.5, None, 0), (9, 0.5, 0)]
)
def test_as_many_run_at_once_as_fit_into_memory(free_share: float, most_share: float | None, expected: int) -> None:
    model, sequences = tiny_model("llama"), difficult_sequences()
    one = at_once(model)._bytes_of(max(sequence.num_tokens for sequence in sequences))
    free_bytes = int(one * free_share / 0.7)  # of which a safe share is taken
    most_bytes = None if most_share is None else int(one * most_share)
    several = at_once(model, free_bytes=lambda _: free_bytes, most_bytes=most_bytes)
    assert several.num_at_once(sequences) == expected
    scores = several.score(sequences)  # one at a time, where nothing is said to fit
    assert largest_error(scores, reference(model, sequences, measured_parameters(model))) <= 1e-6
