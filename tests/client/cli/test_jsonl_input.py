"""What ``vigor score`` reads: files, pipes, standard input and gzip, and what it says where that holds nothing."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.cli.command_line_fake import DEADLINE_SECONDS, write_groups
from vigor_client.cli.jsonl_input import open_input
from vigor_client.cli.jsonl_lines import check_lines
from vigor_client.cli.main import main
from vigor_client.errors import InputError

IDS = ("q1", "q2", "q3")


@pytest.fixture
def groups(tmp_path: Path) -> bytes:
    return write_groups(tmp_path / "groups.jsonl", *IDS).read_bytes()


def _from_pipe(data: bytes, score: Callable[[str], int]) -> int:
    """As ``vigor score <(command)`` has it: a descriptor of a pipe, by its name."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb") as file:
        writer = threading.Thread(target=lambda: (file.write(data), file.close()))
        writer.start()
        code = score(f"/dev/fd/{read_end}")
        writer.join()
    return code


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", ["file", "pipe", "named pipe", "standard input"])
def test_every_group_is_scored_wherever_it_comes_from(
    kind: str, compress: Callable[[bytes], bytes], groups: bytes, url: str, tmp_path: Path
) -> None:
    data, out, path = compress(groups), tmp_path / "out.jsonl", tmp_path / "in"

    def score(source: str) -> int:
        return main(["score", source, "--url", url, "--out", str(out), "--groups-per-request", "2"])

    if kind == "pipe":
        assert _from_pipe(data, score) == 0
    elif kind == "named pipe":
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        assert score(str(path)) == 0
        writer.join()
    elif kind == "standard input":
        command = [sys.executable, "-m", "vigor_client.cli.main", "score", "-", "--url", url, "--out", str(out)]
        subprocess.run(command, input=data, check=True, timeout=DEADLINE_SECONDS)
    else:
        path.write_bytes(data)
        assert score(str(path)) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == list(IDS)


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_an_input_without_a_group_is_told_and_leaves_nothing(
    content: bytes, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    assert main(["score", str(source), "--url", url, "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"vigor: {source}: the file has no groups; nothing was scored\n"
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:12] + bytes(8) + data[20:]])
def test_a_damaged_archive_is_named(damage: Callable[[bytes], bytes], groups: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(damage(gzip.compress(groups)))
    with open_input(path) as source, pytest.raises(InputError, match=f"{path}: the gzip data is damaged"):
        check_lines(source)


def test_half_of_a_surrogate_pair_is_named_by_line_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(r'{"prompt": "Hi", "completions": ["ok", "nice \ud83d"]}')
    assert main(["score", str(path), "--url", "http://127.0.0.1:9"]) == 1
    said = r"completion 1: character 5 is half of a surrogate pair (\ud83d): the text was cut within a character"
    assert capsys.readouterr().err == f"vigor: {path}:1: {said}\n"


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_every_encoding_of_unicode_is_read_with_a_mark_or_without(
    encoding: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path, lines = tmp_path / "in.jsonl", ['{"id": "題-1"}', "", '{"id": "q\u2028\x85"}', ' {"id": "😀"} ']
    path.write_bytes(compress("\r\n".join(lines).encode(encoding)))
    with open_input(path) as source:
        found = [(number, json.loads(text)["id"]) for number, text in source.lines()]
    assert found == [(1, "題-1"), (3, "q\u2028\x85"), (4, "😀")]


def test_a_mark_within_a_file_that_was_put_together_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes('{"a": 1}\n\ufeff{"a": 2}\n\ufeff\n'.encode())
    with open_input(path) as source:
        assert [(number, json.loads(text)) for number, text in source.lines()] == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\ufeff{".encode("utf-16-le") + b"x", ": looks like utf-16-le, but cannot be decoded: truncated data"),
        ('{"prompt": "é"}'.encode("latin-1"), ":1: byte 12 of the line (0xe9) is not UTF-8: save the file as UTF-8"),
        (b'\xff\xfe{\0"\0', ":1: this is not JSON: EOF while parsing a string at line 1 column 2"),
        (
            r'{"prompt": "Hi", "completions": ["ok", "nice \ud83d"]}'.encode("utf-16"),
            r":1: completion 1: character 5 is half of a surrogate pair (\ud83d): the text was cut within a character",
        ),
        (
            '{"prompt": "Hi", "completions": ["ok", "nice \ud83d"]}'.encode("utf-16", "surrogatepass"),
            r":1: completion 1: character 5 is half of a surrogate pair (\ud83d): the text was cut within a character",
        ),
        (
            '{"prompt": "Hi", "completions": ["ok", "nice \ud83d"]}'.encode("utf-8", "surrogatepass"),
            r":1: completion 1: character 5 is half of a surrogate pair (\ud83d): the text was cut within a character",
        ),
        (b"[" * 100_000, ":1: this is not JSON: recursion limit exceeded"),
    ],
)
def test_what_is_no_text_is_named(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert main(["score", str(path), "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith(f"vigor: {path}{said}")
