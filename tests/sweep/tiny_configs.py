"""A tiny configuration of any model type, derived from its default one.

Sizes shrink by name (sizes.py); of the layers, the first of each kind stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.sweep.changes import DEFAULTS
from tests.sweep.sizes import EOS, WINDOW, size_of

_FIRST_FOREIGN_ID = 300  # ids of images, videos and audio: those of text are lower
_FOREIGN_ID = re.compile(r".*(token_(id|index)|image_patch_id|_(start|end)_id|newline_id)")
_HALF_HEAD = 4  # pairs of features that rotary positions turn, where a configuration splits them in three


def tiny_config(model_type: str, changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return the configuration; ``changes`` are what names do not tell (dotted for sub-configurations)."""
    settings = tiny_settings(CONFIG_MAPPING[model_type](**DEFAULTS.get(model_type, {})))
    for name, value in changes.items():
        *path, last = name.split(".")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return CONFIG_MAPPING[model_type](**settings)


def tiny_settings(default: PretrainedConfig) -> dict[str, Any]:
    """Return what to construct the tiny configuration with; what stays as it is by default is left out."""
    raw = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    settings: dict[str, Any] = {}
    for name, value in raw.items():
        small = _tiny_value(name, value, len(settings))
        if small is not None:
            settings[name] = small
    settings |= _first_layer_of_each_kind(raw)
    _agree(settings)
    return settings


def _tiny_value(name: str, value: Any, count: int) -> Any:  # noqa: ANN401 - a configuration holds anything
    """Return a setting's tiny value, None to leave it."""
    match value:
        case PretrainedConfig():
            return {"model_type": value.model_type, **tiny_settings(value)}
        case bool():
            return True if name == "is_decoder" else None
        case int() | None:
            size = size_of(name)
            return _FIRST_FOREIGN_ID + count % 20 if size is None and value and _FOREIGN_ID.fullmatch(name) else size
        case [int(), *_] | (int(), *_) if name == "eos_token_id":
            return EOS
        case float() if name in ("initializer_range", "init_std"):
            return 0.2
        case dict() if name.startswith("rope"):
            return _tiny_rope(value)
    return None


def _tiny_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary settings (or those of each kind of layer) with an original length below that of the sequences."""
    tiny = {name: _tiny_rope(value) if isinstance(value, dict) else value for name, value in rope.items()}
    if "original_max_position_embeddings" in tiny:
        tiny["original_max_position_embeddings"] = WINDOW
    if "mrope_section" in tiny:
        tiny["mrope_section"] = [_HALF_HEAD // 2, _HALF_HEAD // 4, _HALF_HEAD // 4]
    return tiny


def _first_layer_of_each_kind(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lists that have an entry for each layer, for the first layer with each entry alone."""
    num_layers = raw.get("num_hidden_layers", 0)
    lists = {name: value for name, value in raw.items() if _is_of_layers(value, num_layers)}
    if not lists:
        return {}
    first = {
        (name, str(entry)): index for name, entries in lists.items() for index, entry in reversed([*enumerate(entries)])
    }
    if set(first.values()) == {0}:
        return {}
    chosen = sorted({*first.values(), 0, 1})
    tiny = {name: [_tiny_entry(name, entries[index]) for index in chosen] for name, entries in lists.items()}
    return {"num_hidden_layers": len(chosen), **tiny}


def _is_of_layers(value: Any, num_layers: int) -> bool:  # noqa: ANN401 - a configuration holds anything
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and len(value) == num_layers > 2 and list(value) != [*range(num_layers)]


def _tiny_entry(name: str, entry: Any) -> Any:  # noqa: ANN401
    size = size_of(name.removesuffix("_per_layer"))
    return entry if size is None or not isinstance(entry, int) else size


def _agree(settings: dict[str, Any]) -> None:
    """Let sizes agree that families derive from each other."""
    if "kv_lora_rank" in settings:  # latent attention: as many heads of keys, whose size is that of their two parts
        settings["num_key_value_heads"] = settings["num_attention_heads"]
        settings.pop("qk_head_dim", None)
        if "head_dim" in settings:
            settings["head_dim"] = settings["qk_rope_head_dim"]
    rope = settings.get("rope_parameters", {})
    if "mrope_section" in rope and "head_dim" in settings:
        settings["head_dim"] = int(2 * _HALF_HEAD / rope.get("partial_rotary_factor", 1))
