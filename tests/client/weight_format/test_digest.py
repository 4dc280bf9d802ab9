"""Checksums and the digest of a model: fixed for good, since both ends and old state directories rely on them."""

import sys

import pytest

from vigor_client import MissingDependencyError, TensorInfo
from vigor_client.weight_format.digest import checksum, model_digest

A = TensorInfo(name="a", dtype="float32", shape=[2, 3], checksum=checksum(b"a"))
B = TensorInfo(name="b", dtype="bfloat16", shape=[], checksum=checksum(b"b"), aliases=["c"])


def test_a_checksum_is_the_xxh3_128_of_the_bytes() -> None:
    assert checksum(b"") == "xxh3-128:99aa06d3014798d86001c324468d497f"
    assert checksum(b"vigor") == checksum(bytearray(b"vigor")) == checksum(memoryview(b"vigor"))


def test_the_digest_is_the_checksum_of_sorted_lines() -> None:
    lines = f"a float32 [2,3] {checksum(b'a')}\nb bfloat16 [] {checksum(b'b')}\n"
    assert model_digest([B, A]) == checksum(lines.encode())


def test_the_order_of_tensors_does_not_matter() -> None:
    assert model_digest([A, B]) == model_digest([B, A])


@pytest.mark.parametrize("change", [{"name": "z"}, {"dtype": "float16"}, {"shape": [3, 2]}, {"checksum": "other"}])
def test_everything_but_aliases_changes_the_digest(change: dict[str, object]) -> None:
    assert model_digest([A.model_copy(update=change), B]) != model_digest([A, B])
    assert model_digest([A, B.model_copy(update={"aliases": []})]) == model_digest([A, B])


def test_without_xxhash_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)  # what an import of an absent package does
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[trainer\]' in a checkout of vigor-rl"):
        checksum(b"")
