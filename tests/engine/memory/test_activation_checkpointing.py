"""Checkpointed layers: the same norms, and what they keep and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.cases import CPU, difficult_sequences, family_reference, largest_error, on_device, reference
from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.activation_checkpointing import checkpointable
from vigor_service.engine.memory.activation_policy import Activations
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.ops.hutchinson import SketchVectors
from vigor_service.engine.sequences import TokenSequence

CHECKPOINTED = [family for family in FAMILIES if family != "bloom"]
# Layers of other inputs and outputs, positions and windows; with all layers run twice each family is in the fast tier.
QUICK = {"llama", "gpt2", "gemma3", "qwen3_moe", "gpt_oss", "falcon-alibi", "mamba"}
ROOT = Path(__file__).parents[3]
FP32_TOLERANCE = 1e-5
NUM_IN_CHUNKS = {"cpu": 800, "cuda": 2500}  # whole chunks of 384 or 2048 rows of logits, and a part of one
LONG = TokenSequence(tuple(range(10, 40)), tuple(range(5, 60)))
SHARING = [TokenSequence(LONG.prompt_ids, tuple(range(first, first + 9))) for first in (50, 70)]  # one long prompt


@pytest.mark.parametrize("family", CHECKPOINTED)
def test_norms_with_checkpoints_equal_the_reference(family: str, device: torch.device) -> None:
    model = on_device(tiny_model(family), device)
    fast = FastNorms(model, measured_parameters(model))
    assert len(fast.layers) == model.config.get_text_config().num_hidden_layers
    scores = fast.score(difficult_sequences(), activations=Activations.CHECKPOINT)
    assert largest_error(scores, family_reference(family, device)) <= FP32_TOLERANCE


@pytest.mark.parametrize(  # a head of its own, a tied one with a cap, one with a scale
    "family", ["llama", "gemma2", "cohere", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gpt2"))]
)
def test_norms_of_a_sequence_whose_logits_come_in_chunks_equal_the_reference(family: str, device: torch.device) -> None:
    overrides: dict[str, Any] = {"n_positions": 4096} if family == "gpt2" else {"max_position_embeddings": 4096}
    model = on_device(tiny_model(family, **overrides), device)
    parameters = measured_parameters(model)
    long = TokenSequence(
        (1, 2, 3), tuple((5 * index + index // 7) % 300 for index in range(NUM_IN_CHUNKS[device.type]))
    )
    sequences = [long, LONG, TokenSequence((4,), long.completion_ids[:400])]
    expected = reference(model, sequences, parameters)
    fast = FastNorms(model, parameters)
    assert largest_error(fast.score(sequences, activations=Activations.CHECKPOINT), expected) <= FP32_TOLERANCE
    assert largest_error(fast.score(sequences, activations=Activations.REMATERIALIZE), expected) <= FP32_TOLERANCE


@pytest.mark.parametrize("selection", ["last-1-layers", "norms", r".*layers\.1\.mlp.*"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_norms_of_some_parameters_with_checkpoints_equal_the_reference(family: str, selection: str) -> None:
    model = tiny_model(family)
    parameters, sequences = measured_parameters(model, selection), difficult_sequences()
    expected = reference(model, sequences, parameters)
    assert (
        largest_error(FastNorms(model, parameters).score(sequences, activations=Activations.CHECKPOINT), expected)
        <= FP32_TOLERANCE
    )


@pytest.mark.parametrize("selection", ["norms", r".*layers\.1\.mlp.*"])
def test_chunks_of_a_head_that_is_not_measured_add_nothing(selection: str) -> None:
    model = tiny_model("qwen3", tie_word_embeddings=False, max_position_embeddings=4096)
    parameters = measured_parameters(model, selection)
    sequences = [TokenSequence((1, 2, 3), tuple((5 * index + index // 7) % 300 for index in range(500)))]
    expected = reference(model, sequences, parameters)
    assert "lm_head.weight" not in parameters
    assert largest_error(FastNorms(model, parameters).score(sequences), expected) <= FP32_TOLERANCE


def test_estimates_are_the_same_with_checkpoints() -> None:
    model = tiny_model()
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)
    fast.sketch = SketchVectors(parameters, 4)
    assert (
        largest_error(
            fast.score([LONG], activations=Activations.CHECKPOINT),
            fast.score([LONG], activations=Activations.REMATERIALIZE),
        )
        <= FP32_TOLERANCE
    )


@pytest.mark.parametrize(("free_bytes", "times"), [(2**40, 1), (2**10, 2), (None, 1)])
def test_layers_run_twice_where_free_memory_asks_for_it(free_bytes: int | None, times: int) -> None:
    model = tiny_model()
    fast = FastNorms(model, measured_parameters(model), free_bytes=lambda _: free_bytes)
    runs = runs_of_layers(fast)
    fast.score([LONG])
    assert len(runs) == times * len(fast.layers)


def runs_of_layers(fast: FastNorms) -> list[nn.Module]:
    """Return a list that grows by one for each run of a layer from now on."""
    runs: list[nn.Module] = []
    for layer in fast.layers:
        layer.get_submodule("mlp").register_forward_hook(lambda module, *_: runs.append(module))
    return runs


@pytest.mark.parametrize("num_twice", range(5))
def test_no_more_layers_run_twice_than_a_bound_asks_for(num_twice: int) -> None:
    model = tiny_model(num_hidden_layers=4)
    fast = FastNorms(model, measured_parameters(model))
    demand = fast.demand([LONG])
    fast.max_activation_bytes = demand.bytes_once - num_twice * demand.saved_per_layer
    runs = runs_of_layers(fast)
    fast.score([LONG])
    assert len(runs) == len(fast.layers) + num_twice


@pytest.mark.parametrize(
    "family",
    [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in CHECKPOINTED],
)
def test_norms_with_one_of_the_layers_run_twice_equal_the_reference(family: str) -> None:
    model = tiny_model(family)
    parameters = measured_parameters(model)
    sequences = [*(s for s in difficult_sequences() if s.num_loss_tokens), *SHARING]
    expected = [score for score in family_reference(family, CPU) if score.num_loss_tokens]
    expected += reference(model, SHARING, parameters)
    fast = FastNorms(model, parameters)
    fast.max_activation_bytes = fast.demand(sequences).bytes_once - 1
    assert largest_error(fast.score(sequences), expected) <= FP32_TOLERANCE


def peak_bytes(activations: Activations) -> int:
    """Return the peak of a process in which every larger tensor is mapped: no holes in a heap."""
    command = [sys.executable, "-m", "tests.engine.memory.peak_of_checkpointing", activations.name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


@pytest.mark.slow
def test_checkpoints_take_a_fraction_of_the_memory() -> None:
    assert 0 < peak_bytes(Activations.CHECKPOINT) * 3 < peak_bytes(Activations.REMATERIALIZE)


def test_layers_that_return_two_tensors_are_not_checkpointed(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bloom")  # they return attention weights, too
    with caplog.at_level("INFO"):
        engine = Engine(model, name="bloom")
    assert "will not be checkpointed: a decoder layer returns more than one tensor" in caplog.text
    assert engine.score([LONG]).scores[0].num_loss_tokens == len(LONG.completion_ids)


def test_the_layers_are_what_they_were_afterwards() -> None:
    model = tiny_model()
    FastNorms(model, measured_parameters(model)).score([LONG], activations=Activations.CHECKPOINT)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_forward_that_was_put_on_a_layer_runs_and_is_there_again_afterwards() -> None:
    model = tiny_model()
    fast = FastNorms(model, measured_parameters(model))
    expected, calls = fast.score([LONG], activations=Activations.REMATERIALIZE), []
    layer = fast.layers[0]

    def hooked(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - as the layer's own
        calls.append(layer)
        return type(layer).forward(layer, *args, **options)

    layer.forward = hooked
    assert largest_error(fast.score([LONG], activations=Activations.CHECKPOINT), expected) <= FP32_TOLERANCE
    assert len(calls) == 2
    assert vars(layer)["forward"] is hooked


def test_a_layer_that_stands_twice_among_the_layers_is_checkpointed_once() -> None:
    layer = nn.Linear(3, 3)
    with checkpointable([layer, layer]):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)
