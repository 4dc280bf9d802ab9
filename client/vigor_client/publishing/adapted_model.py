"""Publishes a model with a LoRA adapter in the form in which the service holds it: beside its base, or merged into it.

All weights are sent first, which proves that both ends have the same base. After that only the weights that training
changes are sent, relative to the last publication. If the service cannot use these, all weights are sent again.
`vigor-trainer` and TRL's own trainers both publish by it. It imports torch and peft only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from vigor_client.errors import UnsupportedAdapterError, WeightBaseMismatchError
from vigor_client.publishing.publish import PublishResult
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.tensor_names import with_plain_names
from vigor_client.publishing.transports.weight_transport import WeightTransport
from vigor_client.schemas.service import ModelInfo
from vigor_client.schemas.weights import TensorList
from vigor_client.weight_format.lora import lora_scalings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_NAMES_IN_MESSAGE = 3

Delta = Callable[[], "torch.Tensor"]


class PublishingClient(Protocol):
    """The methods of `VigorClient` that are used here; the class itself is in a higher layer of the package."""

    def model(self) -> ModelInfo: ...

    def tensors(self) -> TensorList: ...

    def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        partial: bool = False,
        transport: WeightTransport | None = None,
    ) -> PublishResult: ...


class MergedTensors(Mapping[str, "torch.Tensor"]):
    """Tensors, plus what an adapter adds to some of them. Each sum is computed when read: no second model is kept.

    ``merged[name]`` equals ``tensors[name] + deltas[name]()``, rounded once to the tensor's dtype.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], deltas: Mapping[str, Delta]) -> None:
        self._tensors = tensors
        self._deltas = deltas

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor, delta = self._tensors[name], self._deltas.get(name)
        if delta is None:
            return tensor
        import torch

        with torch.no_grad():
            return (tensor + delta()).to(tensor.dtype)

    def __contains__(self, name: object) -> bool:  # Mapping's own method would compute the sum
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True, slots=True)
class AdaptedWeights:
    """A model's weights under the service's names: all of them, and the subset that training changes."""

    all: Mapping[str, torch.Tensor]
    trained: Mapping[str, torch.Tensor]


class AdaptedModel:
    """A model with a LoRA adapter, and the digest of its last published weights."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._form: Callable[[PeftModel], AdaptedWeights] | None = None
        self._published_digest: str | None = None

    def publish(
        self,
        client: PublishingClient,
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        transport: WeightTransport | None = None,
    ) -> PublishResult:
        """Publish the weights: all of them at first, then those that training changes.

        The names of the service's tensors decide the form, once. With a snapshot, changes are found by comparing bytes,
        as for any other model.

        Raises:
            UnsupportedAdapterError: the service holds another model, or the adapter cannot be merged.
            any error that the client raises.
        """
        if self._form is None:
            self._form = _form_of(self._model, client)
        weights, publication = self._form(self._model), None
        publish = partial(client.publish_weights, weight_version=weight_version, transport=transport)
        if snapshot is None and self._published_digest is not None:
            publication = _publish_trained(publish, weights.trained, base_digest=self._published_digest)
        if publication is None:
            publication = publish(weights.all, snapshot=snapshot)
        self._published_digest = publication.weight_digest
        return publication


PublishedWeights = Mapping[str, "torch.Tensor"] | AdaptedModel


def publish_model(
    client: PublishingClient,
    weights: PublishedWeights,
    *,
    weight_version: int,
    snapshot: WeightSnapshot | None = None,
    transport: WeightTransport | None = None,
) -> PublishResult:
    """Publish the weights of a model with or without an adapter.

    Raises:
        any error that ``AdaptedModel.publish`` or the client raises.
    """
    has_adapter = isinstance(weights, AdaptedModel)
    send = partial(weights.publish, client) if has_adapter else partial(client.publish_weights, weights)
    return send(weight_version=weight_version, snapshot=snapshot, transport=transport)


def adapted_model(model: torch.nn.Module) -> AdaptedModel | None:
    """Return the publisher of a model with an adapter; None for a model without one.

    Raises:
        UnsupportedAdapterError: the model has anything but a single LoRA adapter in PEFT's own wrapper.
    """
    if not hasattr(model, "peft_config"):
        return None
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UnsupportedAdapterError(
            "transformers added the adapter inside the model; wrap the model with peft.get_peft_model instead"
        )
    kinds = ", ".join(cast("str", config.peft_type) for config in model.peft_config.values())
    if kinds != "LORA":
        raise UnsupportedAdapterError(f"the model has adapters of type {kinds}; train one adapter of type LORA")
    return AdaptedModel(model)


def beside_base(model: PeftModel) -> AdaptedWeights:
    """Return the weights as a service started with the adapter holds them: ``model.state_dict()``, without copies."""
    state = with_plain_names(model.state_dict())
    parameters = with_plain_names(dict(model.named_parameters(remove_duplicate=False)))
    return AdaptedWeights(state, {name: state[name] for name, value in parameters.items() if value.requires_grad})


def merged_into_base(model: PeftModel) -> AdaptedWeights:
    """Return the weights as a service started with the base model holds them.

    They equal ``merge_and_unload().state_dict()`` of a copy.

    Raises:
        UnsupportedAdapterError: a layer has more than LoRA's two matrices; names it.
    """
    adapter, base = model.active_adapters[0], model.get_base_model()
    deltas, saved = _deltas(base, adapter), f".modules_to_save.{adapter}."
    parameters = with_plain_names(dict(base.named_parameters(remove_duplicate=False)))
    in_training = {path for path, parameter in parameters.items() if parameter.requires_grad}  # biases, by ``bias``
    tensors: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    for path, tensor in with_plain_names(base.state_dict()).items():
        if ".lora_" in path or ".original_module." in path:
            continue
        name = path.replace(".base_layer.", ".").replace(saved, ".")
        tensors[name] = tensor
        if name in deltas or saved in path or path in in_training:
            trained[name] = tensor
    return AdaptedWeights(MergedTensors(tensors, deltas), MergedTensors(trained, deltas))


def _deltas(base: torch.nn.Module, adapter: str) -> dict[str, Delta]:
    """Return functions that compute each layer's addition, by the name of the weight that it is added to."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = cast("Iterator[tuple[str, torch.nn.Module]]", base.named_modules(remove_duplicate=False))
    modules = with_plain_names(dict(named))
    layers = {name: module for name, module in modules.items() if isinstance(module, BaseTunerLayer)}
    return {f"{name}.weight": _delta(name, layer, adapter) for name, layer in layers.items()}


def _delta(name: str, layer: torch.nn.Module, adapter: str) -> Delta:
    from peft.tuners import lora

    # The exact type is required: subclasses, DoRA and other variants merge by other rules.
    if type(layer) not in (lora.Linear, lora.Embedding):
        raise UnsupportedAdapterError(_unmergeable(name, type(layer).__name__))
    layer = cast("lora.Linear | lora.Embedding", layer)
    if adapter in layer.lora_variant:
        raise UnsupportedAdapterError(_unmergeable(name, type(layer.lora_variant[adapter]).__name__))
    if layer.lora_bias[adapter]:
        raise UnsupportedAdapterError(_unmergeable(name, "lora_bias"))
    make = cast("Callable[[str], torch.Tensor]", layer.get_delta_weight)  # pyright: ignore[reportUnknownMemberType]
    return partial(make, adapter)


def _unmergeable(name: str, kind: str) -> str:
    return (
        f"{name} ({kind}) is more than plain LoRA on a linear layer or an embedding, and is not merged into the base "
        "model that the service holds; start vigor-service with the directory of an adapter that has the same settings"
    )


def _form_of(model: PeftModel, client: PublishingClient) -> Callable[[PeftModel], AdaptedWeights]:
    """Return the function for the form whose tensor names are those of the service."""
    served = client.tensors()
    held = {name for info in served.tensors for name in info.names}
    form = beside_base if any("lora_" in name for name in held) else merged_into_base
    names = set(form(model).all)
    missing = {info.name for info in served.tensors if names.isdisjoint(info.names)}
    if differing := sorted(missing | names - held):
        raise UnsupportedAdapterError(
            f"the adapter: {len(differing)} tensors are not both the service's and this model's, such as "
            f"{', '.join(differing[:_NAMES_IN_MESSAGE])}; start vigor-service with the model that is trained, or with "
            "the directory of an adapter that has the same settings"
        )
    if form is beside_base:
        _refuse_other_scalings(with_plain_names(lora_scalings(model)), client.model().lora_scalings)
    return form


def _refuse_other_scalings(own: Mapping[str, float], served: Mapping[str, float]) -> None:
    for name in sorted(own.keys() & served.keys()):
        if own[name] != served[name]:
            raise UnsupportedAdapterError(
                f"lora_alpha, use_rslora: {name} multiplies its adapter by {own[name]:g}, the service's by "
                f"{served[name]:g}; give both ends the same settings"
            )


def _publish_trained(
    publish: Callable[..., PublishResult], trained: Mapping[str, torch.Tensor], *, base_digest: str
) -> PublishResult | None:
    """Return the publication of the trained weights alone; None if all weights have to be sent.

    That is so if the service takes no partial update, or holds weights other than those published last.
    """
    with suppress(WeightBaseMismatchError):
        publication = publish(trained, partial=True)
        return publication if publication.base_digest == base_digest else None
    return None
