import json
import threading
from contextlib import suppress
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from vigor_service.http.sliced_json import free_in_slices, parse_in_slices

TEXT = st.text(alphabet='ab",\\[]{}: é\n', max_size=6)
LONG = st.sampled_from(["x" * 3000, " " * 100])
SCALARS = LONG | st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=40)
SLICES = st.sampled_from([1, 2, 7, 30])


def _said(parse: object) -> object:
    """What a parser returns, or that it refuses."""
    assert callable(parse)
    try:
        return json.dumps(parse())
    except ValueError:
        return ValueError


@given(DOCUMENTS, SLICES, st.sampled_from([None, 1]))
def test_slices_say_what_the_whole_document_says(document: object, slice_bytes: int, indent: int | None) -> None:
    text = json.dumps(document, indent=indent).encode()
    assert parse_in_slices(text, slice_bytes=slice_bytes) == from_json(text)


@given(DOCUMENTS, SLICES, st.integers(0, 200), st.sampled_from(["", ",", "[", "]", "{", "}", '"', ":", "1", " "]))
def test_slices_refuse_what_the_whole_document_would_be_refused_for(
    document: object, slice_bytes: int, place: int, written: str
) -> None:
    right = json.dumps(document)
    text = (right[:place] + written + right[place + 1 :]).encode()
    assert _said(lambda: parse_in_slices(text, slice_bytes=slice_bytes)) == _said(lambda: from_json(text))


@pytest.mark.parametrize(
    "text", ['{"a":[1,2],"a":[3,4],"b":1}', '{"a":[[1,2],3],"a":5,"b":[6,7]}', '{"a":{"x":1,"y":2},"a":{"z":3,"w":4}}']
)
def test_of_a_name_that_comes_twice_the_last_one_counts_as_in_one_piece(text: str) -> None:
    assert parse_in_slices(text.encode(), slice_bytes=1) == from_json(text)


def _seconds(text: bytes) -> float:
    began = process_time()
    with suppress(ValueError):
        parse_in_slices(text)
    return process_time() - began


@pytest.mark.processor_time
@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"1" * 2_000_000 + b"]",
        b"[" + b" " * 2_000_000 + b"]",
        b"{" + b'"a":' * 500_000,
        b"[" * 2_000_000,
        b'["' + b"a" * 2_000_000,
        b"[" + b"{},[]" * 400_000,
        b"[" * 100 + b'{"a":1,' * 300_000,
        b"," * 2_000_000,
        b"\\" * 2_000_000,
    ],
    ids=["digits", "spaces", "names", "brackets", "quote", "containers", "nested", "commas", "backslashes"],
)
def test_text_that_is_no_json_takes_no_longer_than_its_length_explains(text: bytes) -> None:
    assert _seconds(text) < 2.0  # a pattern that tries again what it gave back would take for ever


def test_other_threads_run_while_a_large_document_is_parsed() -> None:
    text = b'{"groups":[{"prompt_ids":[' + b"12345," * 500_000 + b'1],"completions":[[1]]}]}'
    turns, is_done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not is_done.wait(0.001):
            turns += 1

    counting = threading.Thread(target=count)
    counting.start()
    parse_in_slices(text)
    is_done.set()
    counting.join()
    assert turns > 2


def test_a_document_is_emptied_at_every_depth() -> None:
    parsed: dict[str, Any] = {"groups": [{"prompt_ids": [12345] * 200_000, "completions": [[1], {"ids": [2]}]}], "a": 1}
    group = parsed["groups"][0]
    emptied = [parsed["groups"], group["prompt_ids"], group["completions"], group["completions"][1]["ids"]]
    free_in_slices(parsed)
    assert emptied == [[], [], [], []]
