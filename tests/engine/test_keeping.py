"""What is kept for the backward pass follows from what is free."""

from __future__ import annotations

import pytest
import torch

from vigor_service.engine.keeping import Keep, choose_keep, ways_to_keep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def choose(device: torch.device, free_bytes: int | None, *, can_checkpoint: bool = True) -> Keep:
    """For 100 tokens of 7 bytes."""
    return choose_keep(device, num_tokens=100, bytes_per_token=7, free_bytes=free_bytes, can_checkpoint=can_checkpoint)


@pytest.mark.parametrize(
    ("free_bytes", "on_cpu", "on_cuda"),
    [
        (2000, Keep.LITTLE, Keep.EVERYTHING),
        (1999, Keep.LITTLE, Keep.LITTLE),
        (1000, Keep.LITTLE, Keep.LITTLE),
        (999, Keep.LAYER_INPUTS, Keep.LAYER_INPUTS),
        (0, Keep.LAYER_INPUTS, Keep.LAYER_INPUTS),
        (None, Keep.LITTLE, Keep.EVERYTHING),
    ],
)
def test_the_fastest_way_that_fits_is_chosen(free_bytes: int | None, on_cpu: Keep, on_cuda: Keep) -> None:
    assert choose(CPU, free_bytes) is on_cpu
    assert choose(CUDA, free_bytes) is on_cuda


def test_layers_run_once_where_they_cannot_run_again() -> None:
    assert choose(CUDA, 0, can_checkpoint=False) is ways_to_keep(CUDA)[-1] is Keep.LITTLE
