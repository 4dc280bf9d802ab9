"""What is kept for the backward pass follows from what there is room for."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import tiny_model
from vigor_service.engine.memory.activation_policy import (
    Activations,
    Demand,
    LayerBytes,
    activations_run_once,
    choose_activations,
    room_bytes,
)
from vigor_service.engine.model.decoder import decoder_layers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEMAND = Demand(bytes_once=700, saved_per_layer=150, num_layers=4)


@pytest.mark.parametrize(
    ("room", "on_cpu", "on_cuda"),
    [
        (1400, (Activations.REMATERIALIZE, 0), (Activations.KEEP, 0)),
        (1399, (Activations.REMATERIALIZE, 0), (Activations.REMATERIALIZE, 0)),
        (700, (Activations.REMATERIALIZE, 0), (Activations.REMATERIALIZE, 0)),
        (699, (Activations.CHECKPOINT, 1), (Activations.CHECKPOINT, 4)),
        (550, (Activations.CHECKPOINT, 1), (Activations.CHECKPOINT, 4)),
        (549, (Activations.CHECKPOINT, 2), (Activations.CHECKPOINT, 4)),
        (100, (Activations.CHECKPOINT, 4), (Activations.CHECKPOINT, 4)),
        (0, (Activations.CHECKPOINT, 4), (Activations.CHECKPOINT, 4)),
        (None, (Activations.REMATERIALIZE, 0), (Activations.KEEP, 0)),
    ],
)
def test_the_fastest_way_that_fits_is_chosen_with_no_more_layers_run_twice_than_it_takes(
    room: int | None, on_cpu: tuple[Activations, int], on_cuda: tuple[Activations, int]
) -> None:
    assert choose_activations(CPU, DEMAND, room) == on_cpu
    assert choose_activations(CUDA, DEMAND, room) == on_cuda


def test_layers_run_once_where_they_cannot_run_again() -> None:
    assert (
        choose_activations(CUDA, Demand(700, 150, num_layers=0), 0)
        == (activations_run_once(CUDA)[-1], 0)
        == (Activations.REMATERIALIZE, 0)
    )


def test_room_is_a_share_of_what_is_free_or_the_bound_where_that_is_less() -> None:
    assert room_bytes(1000, None) == 700
    assert room_bytes(1000, 699) == 699
    assert room_bytes(1000, 701) == 700
    assert room_bytes(None, 5) == 5
    assert room_bytes(None, None) is None


def test_prompts_that_are_there_in_any_case_are_counted_and_never_saved() -> None:
    model = tiny_model()
    layers = list(decoder_layers(model) or [])
    layer_bytes = LayerBytes.of(model, layers)
    demand = layer_bytes.demand(10, num_prompt_tokens=7, num_layers=len(layers))
    assert demand.bytes_once == 17 * layer_bytes.per_token
    assert 0 < demand.saved_per_layer * len(layers) < 10 * layer_bytes.per_token
