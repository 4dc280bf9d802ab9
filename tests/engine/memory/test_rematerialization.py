"""What is computed again in the backward pass equals what was not kept."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from vigor_service.engine.memory.rematerialization import ChangedOperandError, Recipe, Rematerialization, restore


def noted(known: Rematerialization, x: Tensor) -> Tensor:
    """Return ``silu(x)`` with its recipe."""
    result = F.silu(x)
    known.note(F.silu, (x,), {}, result)
    return result


def test_a_cheap_result_is_kept_as_its_recipe_and_computed_again() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    result = noted(known, x)
    kept = known.keep(result)
    assert isinstance(kept, Recipe)
    assert torch.equal(restore(kept), result)


def test_recipes_are_made_of_recipes() -> None:
    known = Rematerialization()
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    gate = noted(known, x)
    product = gate * y
    known.note(torch.Tensor.mul, (gate, y), {}, product)
    kept = known.keep(product)
    del gate
    gc.collect()
    assert isinstance(kept, Recipe)
    assert isinstance(kept.operands[0], Recipe)
    assert torch.equal(restore(kept), product)


def test_a_product_is_no_recipe_where_autograd_would_not_keep_its_factors() -> None:
    known, x = Rematerialization(), torch.randn(5, 3, requires_grad=True)
    rotated = x * torch.ones(3)
    known.note(torch.Tensor.mul, (x, torch.ones(3)), {}, rotated)
    assert isinstance(known.keep(rotated), Tensor)


def test_what_no_cheap_operation_returned_is_kept_as_it_is() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    total = x + x
    known.note(torch.Tensor.add, (x, x), {}, total)
    kept = known.keep(total)
    assert isinstance(kept, Tensor)
    assert kept.data_ptr() == total.data_ptr()


def test_a_cast_to_the_own_type_is_no_recipe_of_itself() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    known.note(torch.Tensor.to, (x, torch.float32), {}, x.to(torch.float32))
    assert isinstance(known.keep(x), Tensor)


def test_a_result_that_was_changed_in_place_is_kept_as_it_is() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    result = noted(known, x)
    result.add_(1)
    assert isinstance(known.keep(result), Tensor)


def test_an_operand_that_was_changed_in_place_is_refused() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    result = noted(known, x)
    kept = known.keep(result)
    x.add_(1)
    with pytest.raises(ChangedOperandError, match="changed in place"):
        restore(kept)


def test_a_view_of_another_shape_is_kept_as_it_is() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    result = noted(known, x)
    assert isinstance(known.keep(result.T), Tensor)
    assert isinstance(known.keep(result[:2]), Tensor)


def test_the_recipe_of_a_tensor_that_is_gone_is_forgotten() -> None:
    known, x = Rematerialization(), torch.randn(5, 3)
    noted(known, x)
    gc.collect()
    assert not known._recipes


def test_gradients_are_those_of_the_plain_graph() -> None:
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    expected = torch.autograd.grad((F.silu(x) * y).sum(), [x, y])
    known = Rematerialization()
    with saved_tensors_hooks(known.keep, restore):
        gate = noted(known, x)
        total = (gate * y).sum()
        del gate
    assert all(map(torch.equal, torch.autograd.grad(total, [x, y]), expected))
