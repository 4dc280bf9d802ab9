"""A model with an adapter, in the form in which the service holds it: names and values, and what is sent when."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch

from tests.client.fake_service import MODEL, FakeService, problem
from tests.support.tiny_models import tiny_model
from vigor_client import (
    PublishResult,
    TensorsRefusedError,
    UnsupportedAdapterError,
    VigorClient,
    WeightSnapshot,
    lora_scalings,
)
from vigor_client.publishing.adapted_model import (
    AdaptedModel,
    MergedTensors,
    adapted_model,
    beside_base,
    merged_into_base,
)
from vigor_client.schemas.service import ModelInfo

if TYPE_CHECKING:
    from peft import PeftModel

Tensors = Mapping[str, torch.Tensor]
UPDATES = "/v1/weights/updates"


def adapted(family: str = "llama", *, dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:  # noqa: ANN401 - what PEFT's config takes
    """The family's model with a random adapter; with ``init_lora_weights=True`` one that changes nothing yet."""
    from peft import LoraConfig, PeftModel, get_peft_model

    options = {"r": 3, "target_modules": ["q_proj", "o_proj"], "init_lora_weights": False} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(family, dtype=dtype), LoraConfig(**options))
    assert isinstance(model, PeftModel)
    return model


def train(model: PeftModel) -> None:
    """Every trainable value moves, in place, as an optimizer moves it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.25


def copied(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensors[name].detach().clone() for name in tensors}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"dtype": torch.bfloat16}),
        ("llama", {"use_rslora": True, "lora_alpha": 7}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("llama", {"modules_to_save": ["lm_head", "norm"]}),
        ("qwen2-tied", {"target_modules": "all-linear"}),
        ("gpt2", {"target_modules": "all-linear", "fan_in_fan_out": True}),
        ("mixtral", {}),
    ],
)
def test_merged_weights_are_those_of_pefts_own_merge(family: str, options: dict[str, Any]) -> None:
    model = adapted(family, **options)
    merged = copy.deepcopy(model).merge_and_unload()
    assert isinstance(merged, torch.nn.Module)
    torch.testing.assert_close(dict(merged_into_base(model).all), merged.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("form", [beside_base, merged_into_base])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"family": "qwen2", "bias": "all"},
        {"family": "qwen2", "bias": "lora_only"},
    ],
)
def test_exactly_what_training_changes_is_told_from_the_rest(form: Any, options: dict[str, Any]) -> None:  # noqa: ANN401 - either function
    model = adapted(**options)
    before = copied(form(model).all)
    train(model)
    after = form(model)
    assert set(after.trained) == {name for name in before if not torch.equal(before[name], after.all[name])}
    assert all(torch.equal(after.trained[name], after.all[name]) for name in after.trained)


def test_nothing_is_merged_before_it_is_asked_for() -> None:
    def refuse() -> torch.Tensor:
        raise AssertionError("merged")

    merged = MergedTensors({"a": torch.ones(1), "b": torch.ones(1)}, {"a": refuse})
    assert ("a" in merged, "c" in merged, list(merged), len(merged)) == (True, False, ["a", "b"], 2)
    assert torch.equal(merged["b"], torch.ones(1))
    with pytest.raises(AssertionError, match="merged"):
        merged["a"]


@contextmanager
def client_of(fake: FakeService) -> Iterator[VigorClient]:
    with VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=0) as client:
        yield client


def publish(fake: FakeService, model: AdaptedModel, version: int, snapshot: WeightSnapshot | None = None) -> str | None:
    with client_of(fake) as client:
        return model.publish(client, weight_version=version, snapshot=snapshot).encoding


def assert_serves(fake: FakeService, expected: Tensors) -> None:
    torch.testing.assert_close(fake.tensors, dict(expected), rtol=0, atol=0)


def test_a_service_with_the_adapter_gets_all_once_and_then_what_is_trained() -> None:
    model = adapted()
    fake, publisher = FakeService(copied(adapted(init_lora_weights=True).state_dict())), AdaptedModel(model)
    assert publish(fake, publisher, 0) == "full"
    for version in (1, 2):
        train(model)
        assert publish(fake, publisher, version) == "partial"
        assert_serves(fake, model.state_dict())
    sent = [int(request.headers["Content-Length"]) for request in fake.requests if request.method == "PUT"]
    assert sent[1] < sent[0] / 2


def test_a_service_with_the_base_model_gets_merged_weights() -> None:
    model = adapted(init_lora_weights=True)
    fake, publisher = FakeService(tiny_model().state_dict()), AdaptedModel(model)
    assert publish(fake, publisher, 0) is None, "an adapter that changes nothing yet proves that the bases are equal"
    for version in (1, 2):
        train(model)
        assert publish(fake, publisher, version) == "partial"
        assert_serves(fake, merged_into_base(model).all)


def test_a_tied_model_is_published_under_either_name() -> None:
    model, base = adapted("qwen2-tied"), tiny_model("qwen2-tied").state_dict()
    del base["lm_head.weight"]
    fake = FakeService(base, {"model.embed_tokens.weight": ["lm_head.weight"]})
    publisher = AdaptedModel(model)
    assert publish(fake, publisher, 0) == "full"
    train(model)
    assert publish(fake, publisher, 1) == "partial"


def test_all_comes_again_when_somebody_else_has_published_meanwhile() -> None:
    model = adapted()
    fake, publisher = FakeService(copied(model.state_dict())), AdaptedModel(model)
    publish(fake, publisher, 0)
    fake.tensors = {name: tensor + 1 for name, tensor in fake.tensors.items()}
    train(model)
    assert publish(fake, publisher, 1) == "full"
    assert_serves(fake, model.state_dict())


def test_all_comes_again_when_the_service_asks_for_it() -> None:
    model = adapted()
    fake, publisher = FakeService(copied(model.state_dict())), AdaptedModel(model)
    publish(fake, publisher, 0)
    fake.instead[f"POST {UPDATES}"] = lambda _: problem(409, "weight_base_mismatch")
    train(model)
    assert publish(fake, publisher, 1) == "full"
    train(model)
    assert publish(fake, publisher, 2) == "partial"
    assert_serves(fake, model.state_dict())


def test_with_a_snapshot_all_weights_are_compared() -> None:
    model = adapted()
    given: list[tuple[int, object]] = []

    class Client:
        """Serves what is published."""

        def model(self) -> ModelInfo:
            return MODEL

        def tensors(self) -> Any:  # noqa: ANN401 - a TensorList
            return fake.tensor_list()

        def publish_weights(self, tensors: Tensors, *, weight_version: int, **options: object) -> PublishResult:
            given.append((len(tensors), options["snapshot"]))
            return PublishResult(weight_version, fake.tensor_list().weight_digest, 1, 1)

    fake, publisher, snapshot = FakeService(copied(model.state_dict())), AdaptedModel(model), WeightSnapshot()
    for version in (0, 1):
        publisher.publish(Client(), weight_version=version, snapshot=snapshot)
    assert given == [(len(model.state_dict()), snapshot)] * 2


@pytest.mark.parametrize(
    ("served", "named"),
    [
        (lambda: tiny_model("gpt2").state_dict(), "lm_head.weight|model.embed_tokens.weight"),
        (lambda: adapted(target_modules=["q_proj"]).state_dict(), "o_proj.base_layer.weight"),
        (lambda: adapted(target_modules="all-linear").state_dict(), "down_proj.base_layer.weight"),
    ],
)
def test_a_service_with_another_model_or_adapter_is_refused_by_name(served: Any, named: str) -> None:  # noqa: ANN401 - a function
    fake = FakeService(copied(served()))
    with pytest.raises(UnsupportedAdapterError, match=rf"({named}).*; start vigor-service with"):
        publish(fake, AdaptedModel(adapted()), 0)
    assert fake.calls == ["GET /v1/weights/tensors"]


def test_a_service_that_scales_the_adapter_otherwise_is_refused_by_name() -> None:
    model = adapted(r=4, lora_alpha=8)
    fake = FakeService(copied(model.state_dict()))
    fake.lora_scalings = lora_scalings(adapted(r=4, lora_alpha=8, use_rslora=True))
    with pytest.raises(UnsupportedAdapterError, match=r"o_proj multiplies its adapter by 2, the service's by 4; give"):
        publish(fake, AdaptedModel(model), 0)
    fake.lora_scalings = lora_scalings(model)
    assert publish(fake, AdaptedModel(model), 0) is None


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [
        ("llama", {"use_dora": True}, r"layers\.0\.self_attn\.q_proj \(DoraLinearVariant\)"),
        ("mixtral", {"target_parameters": ["mlp.experts.down_proj"]}, r"mlp\.experts \(ParamWrapper\)"),
        ("qwen2-tied", {"target_modules": ["q_proj"], "lora_bias": True}, r"q_proj \(lora_bias\)"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused_by_name(family: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=named):
        publish(FakeService(tiny_model(family).state_dict()), AdaptedModel(adapted(family, **options)), 0)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's, and it is right
def test_an_adapter_that_unties_tied_weights_is_refused_by_name() -> None:
    base = tiny_model("qwen2-tied").state_dict()
    del base["lm_head.weight"]
    fake = FakeService(base, {"model.embed_tokens.weight": ["lm_head.weight"]})
    with pytest.raises(TensorsRefusedError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight"):
        publish(fake, AdaptedModel(adapted("qwen2-tied", target_modules=["embed_tokens"])), 0)


def test_dora_is_published_to_a_service_with_the_adapter() -> None:
    model = adapted(use_dora=True)
    fake, publisher = FakeService(copied(model.state_dict())), AdaptedModel(model)
    publish(fake, publisher, 0)
    train(model)
    assert publish(fake, publisher, 1) == "partial"
    assert_serves(fake, model.state_dict())


def test_a_model_without_an_adapter_is_left_to_others() -> None:
    assert adapted_model(tiny_model()) is None
    assert adapted_model(adapted()) is not None


def test_an_adapter_of_another_kind_is_refused() -> None:
    from peft import IA3Config, get_peft_model

    model = get_peft_model(tiny_model(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(UnsupportedAdapterError, match="adapters of type IA3; train one adapter"):
        adapted_model(model)


def test_a_second_adapter_is_refused() -> None:
    model = adapted()
    model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    with pytest.raises(UnsupportedAdapterError, match="type LORA, LORA; train one adapter"):
        adapted_model(model)


def test_an_adapter_that_transformers_has_put_into_the_model_is_refused() -> None:
    from peft import LoraConfig

    model: Any = tiny_model()
    model.peft_config = {"default": LoraConfig(target_modules=["q_proj"])}  # as its add_adapter leaves it
    with pytest.raises(UnsupportedAdapterError, match=r"wrap the model with peft\.get_peft_model"):
        adapted_model(model)
