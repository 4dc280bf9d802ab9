"""The input that several linear layers share."""

from __future__ import annotations

import gc

import torch

from vigor_service.engine.memory.rematerialization import Rematerialization
from vigor_service.engine.rules.shared_input import LinearInputs


def test_layers_that_take_the_same_tensor_share_its_gram_matrices() -> None:
    inputs, x = LinearInputs(Rematerialization()), torch.randn(1, 6, 3)
    first, second = inputs.of(x), inputs.of(x)
    first.add_layer(4)
    second.add_layer(5)
    assert first is second
    assert first.num_outputs == 9
    assert first.gram_blocks(0, slice(0, 4)) is second.gram_blocks(0, slice(0, 4))
    torch.testing.assert_close(first.gram_blocks(1, slice(4, 6))[0], x[0, 4:] @ x[0, 4:].T)


def test_other_tensors_have_inputs_of_their_own_even_at_the_same_address() -> None:
    inputs, x = LinearInputs(Rematerialization()), torch.randn(1, 6, 3)
    first = inputs.of(x)
    assert inputs.of(x.view(1, 6, 3)) is not first
    del x
    gc.collect()
    assert inputs.of(torch.randn(1, 6, 3)) is not first


def test_the_input_is_let_go_with_its_last_layer() -> None:
    shared = LinearInputs(Rematerialization()).of(torch.randn(1, 6, 3))
    shared.add_layer(4)
    shared.add_layer(4)
    kept = shared.rows_NI()
    shared.release()
    assert shared.rows_NI() is kept
    shared.release()
    assert shared._rows_NI is None
    assert shared._kept is None
