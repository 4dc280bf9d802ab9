"""Half of a surrogate pair is no text: refused by its place, wherever text may stand."""

from typing import Any

import pytest
from pydantic import ValidationError

from vigor_client import VigorClient
from vigor_client.schemas.common import half_character, half_character_in_json
from vigor_client.schemas.scoring import Group

HALF = "nice \ud83d"
SAID = r"character 5 is half of a surrogate pair \(\\ud83d\): the text was cut within a character"
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"prompt": HALF}, "prompt"),
        ({"prompt": "a", "id": HALF}, "id"),
        ({"prompt": "a", "completions": ["b", HALF]}, "completions.1.text"),
        ({"messages": [{"role": HALF, "content": "a"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "user", "content": HALF}]}, "messages.1.content"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": HALF}]}]}, "messages.0.content"),
        ({"messages": [{**USER, "tool_calls": [{"name": HALF}]}]}, "messages.0"),
        ({"messages": [USER], "tools": [{"name": HALF}]}, "tools"),
        ({"messages": [USER], "chat_template_kwargs": {"a": HALF}}, "chat_template_kwargs"),
    ],
)
def test_it_is_refused_by_its_place(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError, match=SAID) as refused:
        Group.model_validate({"completions": ["a"], **fields})
    assert ".".join(map(str, refused.value.errors()[0]["loc"])) == place


def test_the_client_sends_nothing() -> None:
    with VigorClient("http://127.0.0.1:9") as client, pytest.raises(ValueError, match=SAID):
        client.score([{"prompt": "a", "completions": ["b", HALF]}])


def test_the_first_one_is_found_by_its_place_and_whole_pairs_are_fine() -> None:
    assert half_character({"a": ["\U0001f600", 1, None, {"b": "\ude00"}], "c": HALF}) == (
        ("a", 3, "b"),
        r"character 0 is half of a surrogate pair (\ude00): the text was cut within a character",
    )
    assert half_character({"a": [1, "\U0001f600"]}) is None
    assert half_character({"a": {HALF: 1}}) == (("a",), f"a name in it: {half_character(HALF)[1]}")  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": "\\ud83d"', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_for_another_reason_holds_none(text: bytes) -> None:
    assert half_character_in_json(text) is None
    assert half_character_in_json(rb'["\ud83d\ude00", "\ud83d"]') == ((1,), half_character("\ud83d")[1])  # pyright: ignore[reportOptionalSubscript]
