"""A state dict of a wrapped model is taken under the service's names, or refused with what wraps it."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from tests.client.fake_service import FakeService
from tests.support.tiny_models import tiny_model
from vigor_client import TensorsRefusedError, digest_of_tensors
from vigor_client.publishing.tensor_names import with_service_names
from vigor_client.schemas.weights import TensorList

Tensors = dict[str, torch.Tensor]
WEIGHTS: Tensors = {"model.a.weight": torch.ones(2), "model.b.weight": torch.zeros(3)}


def wanted(tensors: Tensors = WEIGHTS) -> TensorList:
    return FakeService(tensors, {"model.a.weight": ["head.weight"]}).tensor_list()


@pytest.mark.parametrize(
    "pattern",
    [
        "{}",
        "_orig_mod.{}",
        "module.{}",
        "module.module.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_what_wraps_the_model_is_taken_away(pattern: str) -> None:
    tensors = {pattern.format(name): tensor for name, tensor in WEIGHTS.items()}
    renamed = with_service_names(tensors, wanted())
    assert dict(renamed) == WEIGHTS
    assert "model.a.weight" in renamed
    assert len(renamed) == 2
    assert digest_of_tensors(tensors, wanted()) == wanted().weight_digest


def test_a_part_of_the_model_may_be_wrapped_and_a_tied_name_given() -> None:
    tensors = {
        "module.head.weight": torch.ones(2),
        "model.b._checkpoint_wrapped_module._orig_mod.weight": torch.zeros(3),
    }
    assert dict(with_service_names(tensors, wanted())).keys() == {"head.weight", "model.b.weight"}


def test_a_name_that_the_service_has_stays() -> None:
    own = {"module.weight": torch.ones(2), "weight": torch.zeros(2)}
    assert dict(with_service_names(own, FakeService(own).tensor_list())) == own


def test_a_compiled_models_state_dict_is_taken() -> None:
    model = tiny_model("qwen2-tied")
    plain = model.state_dict()
    fake = FakeService({name: plain[name] for name, _ in model.named_parameters()}, {})
    fake.aliases = {"model.embed_tokens.weight": ["lm_head.weight"]}
    compiled = cast("torch.nn.Module", torch.compile(model, backend="eager"))
    assert with_service_names(compiled.state_dict(), fake.tensor_list()).keys() == plain.keys()


def test_two_names_for_one_tensor_are_refused() -> None:
    with pytest.raises(TensorsRefusedError, match=r"is model.a.weight to the service, and so is module.model.a.weight"):
        with_service_names(
            {"module.model.a.weight": torch.ones(2), "_orig_mod.model.a.weight": torch.ones(2)}, wanted()
        )


def test_pefts_wrapper_is_named_with_what_to_do() -> None:
    tensors = {f"base_model.model.{name}": tensor for name, tensor in WEIGHTS.items()}
    with pytest.raises(TensorsRefusedError, match=r"base_model.model.\*: all 2 names .*merge_and_unload"):
        with_service_names(tensors, wanted())
    assert dict(with_service_names(tensors, FakeService(tensors).tensor_list())) == tensors  # it holds the adapter


def test_another_prefix_of_all_names_is_named_once() -> None:
    tensors = {f"policy.{name}": tensor for name, tensor in WEIGHTS.items()}
    with pytest.raises(TensorsRefusedError, match=r"policy.\*: all 2 names begin with it") as refused:
        with_service_names(tensors, wanted())
    assert len(refused.value.faults) == 1


def test_single_strangers_are_left_to_be_refused_by_name() -> None:
    renamed = with_service_names(WEIGHTS | {"stranger": torch.ones(1)}, wanted())
    assert "stranger" in renamed
