"""JSON that is almost right: a body of a route in which some values are others."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# Each route with a body that it takes, or would take at the right moment; UPDATE stands for an open update's id.
UPDATE = "UPDATE"
_PATH = f"/v1/weights/updates/{UPDATE}"
_GROUP = {"prompt": "2 + 3 =", "completions": ["5", {"text": " 6", "finish_reason": "length"}]}
FILE = {"name": "model.safetensors", "num_bytes": 64, "checksum": f"xxh3-128:{'0' * 32}"}
VALID: dict[tuple[str, str], Any] = {
    ("POST", "/v1/score"): {
        "groups": [_GROUP, {"prompt_ids": [1, 2], "completions": [{"ids": [3, 4], "mask": [1, 0]}]}]
    },
    ("POST", "/v1/score/sample"): {"group": "a", "group_size": 1, "index": 0, "prompt": "1", "completion": "2"},
    ("POST", "/v1/attribution"): {"prompt": "2 + 3 =", "completion": "5"},
    ("POST", "/openrlhf/get_reward?group_size=1"): {"query": ["2 + 3 = 5"], "prompts": ["2 + 3 ="], "labels": ["5"]},
    ("POST", "/slime/reward?group_size=1"): {"prompt": "2 + 3 =", "response": "5", "label": "5"},
    ("POST", "/update_weights_from_disk"): {"model_path": "a", "weight_version": "7"},
    ("POST", "/pull_weights"): {"source_dir": "a", "target_version": "7"},
    ("POST", "/v1/weights/updates"): {"weight_version": 7, "encoding": "full", "files": [FILE]},
    ("POST", f"{_PATH}/take"): {"directory": "a"},
    ("POST", f"{_PATH}/commit"): {},
    ("PUT", f"{_PATH}/files/model.safetensors"): {},
    ("DELETE", _PATH): {},
    ("GET", _PATH): {},
    ("GET", "/v1/weights"): {},
    ("GET", "/v1/weights/tensors"): {},
    ("GET", "/v1/model"): {},
    ("GET", "/v1/engines"): {},
    ("PUT", "/v1/engines"): {"num_engines": 1},
    ("GET", "/model_info"): {},
    ("GET", "/metrics"): {},
    ("GET", "/"): {},
    ("GET", "/docs"): {},
    ("GET", "/openapi.json"): {},
}

NAMES = st.one_of(
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "/",
            "a/../..",
            "a",
            "a.part",
            ".a",
            "fifo",
            "itself",
            "directory",
            "a\x00b",
            "con",
            "é" * 255,
            "%2e%2e",
        ]
    ),
    st.text(max_size=300),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63, -(2**63), 10**400, 1e308, -0.0]),
    st.floats(allow_nan=False, allow_infinity=False),
    NAMES,
    st.sampled_from(["{{ 1/0 }}", "\ud800", "\U0010ffff" * 9, "<|im_end|>", " " * 5000, "9" * 5000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def seldom(one_in: int) -> st.SearchStrategy[bool]:
    """Draw True once in so many times."""
    return st.sampled_from([False] * (one_in - 1) + [True])


def deep(depth: int) -> bytes:
    """Return JSON that is only brackets."""
    return b"[" * depth + b"]" * depth


def wide(value: object, count: int) -> list[object]:
    """Return one value many times; three such changes in one another are 8,000 times."""
    return [value] * count


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:  # noqa: ANN401 - JSON
    """Draw the value with one part of it replaced, left out, repeated or added to."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(changed(value[index])), *value[index + 1 :]]
    return draw(st.one_of(VALUES, st.just(wide(value, 20)), st.just({**_as_dict(value), "more": value})))


def _as_dict(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


@st.composite
def bodies(draw: st.DrawFn, valid: Any) -> bytes:  # noqa: ANN401 - JSON
    """Draw a body: right, changed in up to three places, or no JSON at all."""
    if draw(seldom(20)):
        return draw(st.binary(max_size=400))
    if draw(seldom(20)):
        return deep(draw(st.sampled_from([1, 900, 100_000])))
    value = valid
    for _ in range(draw(st.integers(0, 3))):
        value = draw(changed(value))
    text = json.dumps(value)  # half of a surrogate pair is written as an escape
    if draw(seldom(10)):
        text = text.replace("1", draw(st.sampled_from(["NaN", "Infinity", "1e999", "-", "1" * 5000])))
    encoded = text.encode()
    return encoded[: draw(st.integers(0, len(encoded)))] if draw(seldom(10)) else encoded
