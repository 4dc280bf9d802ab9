"""The families of the sweep: what transformers maps to a causal or an image-text model, and further forms of some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.sweep.changes import CHANGES, FORMS
from tests.sweep.tiny_configs import tiny_config

_DEVIATION = 0.2  # of weights: far from the uniform distribution, so that no term of the norm is negligible


@dataclass(frozen=True, slots=True)
class Family:
    """A model type of transformers and the class that makes a policy of it."""

    name: str
    model_type: str
    architecture: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def families() -> dict[str, Family]:
    """Return all families by name: causal ones, then those of images and text, then further forms."""
    found = [
        Family(model_type, model_type, architecture, CHANGES.get(model_type, {}))
        for model_type, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    ]
    for model_type, architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        if causal != architecture:
            name = f"{model_type} (image-text)" if causal else model_type
            found.append(Family(name, model_type, architecture, CHANGES.get(name, CHANGES.get(model_type, {}))))
    for name, (model_type, changes) in FORMS.items():
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        found.append(Family(name, model_type, architecture, {**CHANGES.get(model_type, {}), **changes}))
    return {family.name: family for family in found}


def tiny_policy(family: Family) -> PreTrainedModel:
    """Return a random model of the family in float32, the same every time, in eval mode."""
    architecture = getattr(transformers, family.architecture)
    config = _config_for(architecture, tiny_config(family.model_type, family.changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture._from_config(config, dtype=torch.float32)
        _shake(model)
    return model.eval()


def _config_for(architecture: type[PreTrainedModel], config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration, or the part of it that the class takes: the language model of a larger model."""
    wanted: Any = architecture.config_class
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PretrainedConfig))]
    return next((part for part in parts if isinstance(part, wanted)), config)


def _shake(model: PreTrainedModel) -> None:
    """Move weights that are small, zero or one when they are new, so that a rule that forgets one is seen.

    The row of a padding id is zero too, where norms amplify gradients and routers know no first expert.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                empty = parameter.abs().sum(-1) == 0
                parameter[empty] = _DEVIATION * torch.randn_like(parameter[empty])
            is_vector = parameter.dim() < 2
            if is_vector or parameter.std() < _DEVIATION / 2:
                parameter.add_(_DEVIATION * (0.5 if is_vector else 1.0) * torch.randn_like(parameter))
