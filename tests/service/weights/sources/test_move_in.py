"""Files of an update that lie on this machine: moved or copied, and only if they are what was announced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vigor_client.schemas.weights import UpdateFile
from vigor_client.weight_format.digest import announce
from vigor_service.errors import InvalidRequestError
from vigor_service.weights.sources import move_in

DATA = bytes(range(256)) * 40
ANNOUNCED = announce("model.safetensors", [DATA])


def take_file(source: Path, target: Path, announced: UpdateFile) -> None:
    for _ in move_in.take_file(source, target, announced):
        pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "given" / ANNOUNCED.name
    source.parent.mkdir()
    source.write_bytes(DATA)
    return source


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging" / ANNOUNCED.name


def test_a_file_on_the_same_disk_is_moved(source: Path, target: Path) -> None:
    inode = source.stat().st_ino
    take_file(source, target, ANNOUNCED)
    assert target.read_bytes() == DATA
    assert target.stat().st_ino == inode
    assert not source.exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second disk to take a file from")  # noqa: S108
def test_a_file_on_another_disk_is_copied(target: Path) -> None:
    source = Path("/dev/shm") / f"vigor-{os.getpid()}.safetensors"  # noqa: S108
    source.write_bytes(DATA)
    try:
        take_file(source, target, ANNOUNCED)
        assert target.read_bytes() == DATA
        assert source.exists()
    finally:
        source.unlink()


def replace_by_other_bytes(source: Path) -> None:
    source.write_bytes(DATA[::-1])


def replace_by_a_part(source: Path) -> None:
    source.write_bytes(DATA[:-1])


def replace_by_a_link(source: Path) -> None:
    secret = source.with_name("secret")
    source.rename(secret)
    source.symlink_to(secret)


def replace_by_a_pipe(source: Path) -> None:
    source.unlink()
    os.mkfifo(source)


def replace_by_a_directory(source: Path) -> None:
    source.unlink()
    source.mkdir()


def test_a_file_with_another_name_is_copied_and_can_no_longer_change_what_was_taken(
    source: Path, target: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.hardlink_to(source)
    take_file(source, target, ANNOUNCED)
    with other.open("r+b") as file:
        file.write(b"changed")
    assert target.read_bytes() == DATA
    assert source.samefile(other)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "cannot be taken: No such file or directory"),
        (replace_by_other_bytes, f"{ANNOUNCED.checksum} was announced"),
        (replace_by_a_part, "has 10239 bytes, 10240 were announced"),
        (replace_by_a_link, "is not a regular file"),
        (replace_by_a_pipe, "is not a regular file"),
        (replace_by_a_directory, "is not a regular file"),
    ],
)
def test_what_was_not_announced_is_refused_and_stays_where_it_is(
    spoil: Callable[[Path], None], message: str, source: Path, target: Path
) -> None:
    spoil(source)
    before = [(path.name, path.lstat().st_ino) for path in sorted(source.parent.iterdir())]
    with pytest.raises(InvalidRequestError) as caught:
        take_file(source, target, ANNOUNCED)
    [place] = caught.value.errors
    assert place.loc == ["files", ANNOUNCED.name]
    assert message in place.msg
    assert list(target.parent.iterdir()) == []
    assert [(path.name, path.lstat().st_ino) for path in sorted(source.parent.iterdir())] == before


def test_a_refused_file_does_not_replace_one_that_has_its_name_by_now(source: Path, target: Path) -> None:
    replace_by_other_bytes(source)
    steps = move_in.take_file(source, target, ANNOUNCED)
    next(steps)
    source.write_bytes(b"the next one")
    with pytest.raises(InvalidRequestError):
        next(steps)
    assert source.read_bytes() == b"the next one"
    assert list(target.parent.iterdir()) == []


def test_a_file_that_is_given_up_half_way_is_where_it_was(source: Path, target: Path) -> None:
    steps = move_in.take_file(source, target, ANNOUNCED)
    next(steps)
    assert not source.exists()
    steps.close()
    assert source.read_bytes() == DATA
    assert list(target.parent.iterdir()) == []
