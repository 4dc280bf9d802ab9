"""Parses JSON of any size in slices, so that other threads run between two slices.

A parser holds Python's global lock from its first byte to its last, so a large document would block the event loop.
Each slice is made a complete document: containers that are open at a cut are closed there and reopened in the next one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, cast

from pydantic import JsonValue
from pydantic_core import from_json

SLICE_BYTES = 1 << 18

# Alternatives begin with different bytes and are possessive, so that the expressions never backtrack.
_SHORT_STRING = rb'"[^"\\]{0,1024}+(?:\\.[^"\\]{0,1024}+){0,64}+"'
_PLAIN, _PLAIN_VALUE = rb'[^"\[\]{}]{1,1024}+', rb'[^"\[\]{},]{1,1024}+'
_FLAT = rb"(?>[\[{](?:%b|%b){0,16}[\]}])" % (_PLAIN, _SHORT_STRING)
_SMALL = rb"(?>[\[{](?:%b|%b|%b){0,16}[\]}])" % (_PLAIN, _SHORT_STRING, _FLAT)
_PLAIN_VALUES = rb'(?>[^"\[\]{}]{0,1024},)'
_ANY_VALUE = rb"(?>(?:%b|%b|%b){0,16})," % (_PLAIN_VALUE, _SHORT_STRING, _SMALL)
_VALUES = rb"(?>(?:%b|%b){1,256})" % (_PLAIN_VALUES, _ANY_VALUE)  # each followed by a comma
_PARTS = re.compile(rb"%b|%b|[\[\]{}]|%b" % (_VALUES, _SHORT_STRING, _PLAIN_VALUE), re.DOTALL)
_IN_STRING = re.compile(rb'(?>(?:[^"\\]{1,4096}+|\\.){1,256})', re.DOTALL)
_CLOSERS = {b"{": b"}", b"[": b"]"}
_MAX_DEPTH = 200  # the limit of from_json
_MAX_UNCUT_BYTES = 1 << 19  # longer text without a comma between values is white space or not JSON
_MAX_LENGTH_OF_PART = 1 << 17  # at most this much of a part counts: one string may fill the document
_FREED_VALUES = 1 << 16
_SEEN_BYTES = 64  # around a comma; with more white space the text is not cut there


def parse_in_slices(text: bytes, *, slice_bytes: int = SLICE_BYTES) -> JsonValue:
    """Return the parsed JSON; equals ``pydantic_core.from_json(text)``.

    Raises:
        ValueError: the text is not JSON. The message says why, and where if the text is no longer than a slice.
    """
    if len(text) <= slice_bytes:
        return _parsed(text)
    try:
        return _Slices(text, slice_bytes).parse()
    except ValueError as error:
        raise ValueError(str(error).partition(" at line ")[0]) from error


def free_in_slices(parsed: object) -> None:
    """Empty a parsed document in slices: freeing a list of millions in one step would block all other threads."""
    containers = [parsed]
    while containers:
        container = containers.pop()
        if isinstance(container, dict):
            containers += cast("dict[str, object]", container).values()
        elif isinstance(container, list):
            _free_list(cast("list[object]", container), containers)


def _free_list(values: list[object], containers: list[object]) -> None:
    while values:
        containers += [value for value in values[-_FREED_VALUES:] if isinstance(value, dict | list)]
        del values[-_FREED_VALUES:]


class _Slices:
    """The document parsed so far, and the containers that are open at the current place, outermost first."""

    def __init__(self, text: bytes, slice_bytes: int) -> None:
        self._text = text
        self._slice_bytes = slice_bytes
        self._openers: list[bytes] = []
        self._names: list[bytes] = []  # the key of each of them; empty in an array, and for the outermost
        self._latest_name = b""
        self._reopened = secrets.token_hex(8)  # key of a reopened container: random, so no document has it

    def parse(self) -> JsonValue:
        whole: Any = None
        names, opened, began, num_uncut = list[bytes](), b"", 0, 0
        for part, end in self._parts():
            num_uncut += min(len(part), _MAX_LENGTH_OF_PART)
            if self._ends_with(part) or len(self._openers) > _MAX_DEPTH or num_uncut > _MAX_UNCUT_BYTES:
                break
            self._follow(part)
            cut = end - 1
            if cut - began < self._slice_bytes or not self._is_between_values(cut):
                continue
            piece = _parsed(opened + self._text[began:cut] + self._closed())
            whole = self._joined(whole, piece, names)
            names, opened, began, num_uncut = self._names[1:], self._opened(), cut + 1, 0
        return self._joined(whole, _parsed(opened + self._text[began:]), names)

    def _parts(self) -> Iterator[tuple[bytes, int]]:
        """Yield the parts of the text, each with the place where it ends."""
        place = 0
        while place < len(self._text):
            match = _PARTS.match(self._text, place)
            end = match.end() if match else self._end_of_string(place)
            yield self._text[place:end], end
            place = end

    def _end_of_string(self, start: int) -> int:
        """Return the place where a string of any length ends."""
        end = start + 1
        while match := _IN_STRING.match(self._text, end):
            end = match.end()
        if not self._text.startswith(b'"', end):
            raise ValueError("EOF while parsing a string")
        return end + 1

    def _ends_with(self, part: bytes) -> bool:
        return part in (b"]", b"}") and len(self._openers) < 2

    def _follow(self, part: bytes) -> None:
        if part in _CLOSERS:
            self._names.append(self._latest_name if self._openers and self._openers[-1] == b"{" else b"")
            self._openers.append(part)
        elif part in (b"]", b"}"):
            self._openers.pop()
            self._names.pop()
        elif part.startswith(b'"'):
            self._latest_name = part

    def _is_between_values(self, end: int) -> bool:
        """Return whether there is a comma at ``end`` with a value before it and a value after it."""
        before = self._text[max(0, end - _SEEN_BYTES) : end].rstrip()[-1:]
        after = self._text[end + 1 : end + 1 + _SEEN_BYTES].lstrip()[:1]
        is_comma = self._text[end : end + 1] == b","
        return bool(is_comma and self._openers and before and after and before not in b"[{,:" and after not in b"]},:")

    def _closed(self) -> bytes:
        return b"".join(_CLOSERS[opener] for opener in reversed(self._openers))

    def _opened(self) -> bytes:
        named = json.dumps(self._reopened).encode() + b":"
        pairs = zip(self._openers, self._names, strict=True)
        return b"".join(named + opener if name else opener for opener, name in pairs)

    def _joined(self, whole: Any, piece: Any, names: list[bytes]) -> Any:  # noqa: ANN401 - JSON
        """Add the next slice to the document, and return it. The containers with these keys continue in the slice."""
        if whole is None:
            return piece
        outer, inner = whole, piece
        for name in names:
            outer, inner = self._join(outer, inner, name)
        _add(outer, inner)
        return whole

    def _join(self, outer: Any, inner: Any, name: bytes) -> tuple[Any, Any]:  # noqa: ANN401 - JSON
        """Add the slice's later siblings of a reopened container; return that container, and its part in the slice."""
        if name:
            goes_on, rest = outer[_parsed(name)], inner.pop(self._reopened)
        else:
            goes_on, rest = outer[-1], inner.pop(0)
        _add(outer, inner)
        return goes_on, rest


def _add(outer: dict[str, Any] | list[Any], inner: Any) -> None:  # noqa: ANN401 - JSON
    if isinstance(outer, dict):
        outer.update(inner)
    else:
        outer.extend(inner)


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - JSON
    return from_json(text, cache_strings="keys")
