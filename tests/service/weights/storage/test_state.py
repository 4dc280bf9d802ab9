"""What is stored comes back whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from vigor_client.schemas.weights import UpdateEncoding
from vigor_service.errors import StartupError, WeightBaseMismatchError
from vigor_service.weights.storage.state import MAX_FOLLOWING, DamagedStateError, StateDirectory, UpdateRecord

FULL_BYTES, DELTA_BYTES = 1000, 10


def digest(version: int) -> str:
    return f"xxh3-128:{version:032x}"


def record(version: int, encoding: UpdateEncoding) -> UpdateRecord:
    return UpdateRecord(
        weight_version=version,
        weight_digest=digest(version),
        base_version=version - 1,
        base_digest=digest(version - 1),
        encoding=encoding,
    )


class Source:
    """Updates as they are staged, on the file system of the state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()

    def files(self, version: int, num_bytes: int) -> Mapping[str, Path]:
        path = self._directory / str(version)
        path.write_bytes(bytes([version]) * num_bytes)
        return {"model.safetensors": path}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


@contextmanager
def opened(root: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(root)
    try:
        yield state
    finally:
        state.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    with opened(tmp_path / "state") as state:
        yield state


def store(state: StateDirectory, source: Source, *updates: tuple[int, UpdateEncoding]) -> None:
    for version, encoding in updates:
        num_bytes = FULL_BYTES if encoding == "full" else DELTA_BYTES
        state.store(record(version, encoding), source.files(version, num_bytes))


def contents(state: StateDirectory) -> list[tuple[int, str, bytes]]:
    """What would be replayed."""
    return [
        (
            update.record.weight_version,
            update.record.encoding,
            b"".join(path.read_bytes() for path in update.files.values()),
        )
        for update in state.read()
    ]


def test_the_last_full_update_and_what_followed_come_back_in_order(source: Source, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"), (2, "delta"), (3, "full"), (4, "delta"), (5, "delta"))
    expected = [(3, "full", b"\3" * FULL_BYTES), (4, "delta", b"\4" * DELTA_BYTES), (5, "delta", b"\5" * DELTA_BYTES)]
    with opened(tmp_path / "state") as state:
        assert contents(state) == expected


def test_a_full_update_removes_what_came_before(state: StateDirectory, source: Source, tmp_path: Path) -> None:
    store(state, source, (1, "full"), (2, "delta"), (3, "delta"), (4, "full"))
    assert [path.name for path in (tmp_path / "state").iterdir() if path.is_dir()] == ["00000004"]


def test_partial_updates_follow_the_last_full_one_as_deltas_do(source: Source, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"), (2, "full"), (3, "partial"), (4, "delta"), (5, "partial"))
    with opened(tmp_path / "state") as state:
        assert [(version, encoding) for version, encoding, _ in contents(state)] == [
            (2, "full"),
            (3, "partial"),
            (4, "delta"),
            (5, "partial"),
        ]


def test_deltas_without_a_full_update_follow_what_the_service_was_started_with(
    state: StateDirectory, source: Source
) -> None:
    store(state, source, (1, "delta"), (2, "delta"))
    assert [update.record.weight_version for update in state.read()] == [1, 2]


def test_what_was_being_written_when_the_process_was_killed_is_not_there(source: Source, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"))
    incoming = tmp_path / "state" / "incoming" / "files"
    incoming.mkdir(parents=True)
    (incoming / "model.safetensors").write_bytes(b"half")
    with opened(tmp_path / "state") as state:
        assert [version for version, *_ in contents(state)] == [1]
    assert not incoming.exists()


def test_numbers_go_on_after_a_restart(source: Source, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (7, "full"), (8, "delta"))
    with opened(tmp_path / "state") as state:
        state.read()
        after_8 = record(3, "delta").model_copy(update={"base_version": 8, "base_digest": digest(8)})
        state.store(
            after_8, source.files(3, DELTA_BYTES)
        )  # the trainer names versions; the order is that of the commits
        assert [version for version, *_ in contents(state)] == [7, 8, 3]


def test_two_services_cannot_share_it(tmp_path: Path) -> None:
    with opened(tmp_path / "state"), pytest.raises(StartupError, match="another service"):
        StateDirectory(tmp_path / "state")


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match="state directory"):
        StateDirectory(tmp_path / "file" / "state")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda update: (update / "update.json").unlink(), "00000001/update.json"),
        (lambda update: (update / "update.json").write_text('{"weight_version": 1'), "00000001/update.json"),
        (lambda update: (update / "update.json").write_text("{}"), "00000001/update.json"),
        (lambda update: (update / "files" / "model.safetensors").unlink() or (update / "files").rmdir(), "files"),
    ],
)
def test_a_damaged_update_is_named(
    state: StateDirectory, source: Source, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    store(state, source, (1, "full"))
    damage(tmp_path / "state" / "00000001")
    with pytest.raises(DamagedStateError, match=message):
        state.read()


@pytest.mark.parametrize("encoding", ["delta", "partial"])
def test_after_many_updates_that_follow_a_full_one_is_asked_for(
    state: StateDirectory, source: Source, encoding: UpdateEncoding
) -> None:
    store(state, source, (1, "full"))
    for version in range(2, 2 + MAX_FOLLOWING):
        state.require_room_to_follow(digest(version - 1), model_bytes=FULL_BYTES)
        store(state, source, (version, encoding))
    with pytest.raises(WeightBaseMismatchError, match=f"{MAX_FOLLOWING} updates since the last full one"):
        state.require_room_to_follow(digest(1 + MAX_FOLLOWING), model_bytes=FULL_BYTES)
    store(state, source, (99, "full"))
    state.require_room_to_follow(digest(99), model_bytes=FULL_BYTES)


def test_deltas_larger_than_the_model_ask_for_a_full_update_also_after_a_restart(
    source: Source, tmp_path: Path
) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"), (2, "delta"), (3, "delta"))
    with opened(tmp_path / "state") as state:
        state.read()
        state.require_room_to_follow(digest(3), model_bytes=2 * DELTA_BYTES)
        with pytest.raises(WeightBaseMismatchError):
            state.require_room_to_follow(digest(3), model_bytes=2 * DELTA_BYTES - 1)


@pytest.mark.parametrize("encoding", ["delta", "partial"])
def test_nothing_follows_weights_that_are_stored_but_were_never_served(
    source: Source, tmp_path: Path, encoding: UpdateEncoding
) -> None:
    """As where storing took longer than it was waited for: its commit was refused, and a restart comes back with it."""
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"), (2, "delta"))
        served = digest(1)
        with pytest.raises(WeightBaseMismatchError, match="send a full update"):
            state.require_room_to_follow(served, model_bytes=FULL_BYTES)
        follows_1 = record(3, encoding).model_copy(update={"base_version": 1, "base_digest": served})
        with pytest.raises(WeightBaseMismatchError, match="send a full update"):
            state.store(follows_1, source.files(3, DELTA_BYTES))
        store(state, source, (4, "full"), (5, "delta"))
        assert [version for version, *_ in contents(state)] == [4, 5]


# ------------------------------------------------------------------------------------ killed half-way, and other kinds


def half_removed(update: Path) -> None:
    (update / "files" / "model.safetensors").unlink()


def without_record(update: Path) -> None:
    (update / "update.json").unlink()


def empty(update: Path) -> None:
    shutil.rmtree(update)
    update.mkdir()


@pytest.mark.parametrize("damage", [half_removed, without_record, empty])
def test_an_update_that_a_full_one_superseded_is_not_needed_whatever_is_left_of_it(
    source: Source, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"), (2, "full"))
    shutil.copytree(tmp_path / "state" / "00000002", tmp_path / "state" / "00000001")
    damage(tmp_path / "state" / "00000001")
    with opened(tmp_path / "state") as state:
        assert [version for version, *_ in contents(state)] == [2]
    assert not (tmp_path / "state" / "00000001").exists()


def test_what_was_being_removed_when_the_process_was_killed_is_removed_at_the_next_start(
    source: Source, tmp_path: Path
) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"))
    leftover = tmp_path / "state" / "outgoing-0123456789abcdef" / "files"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    with opened(tmp_path / "state") as state:
        assert [version for version, *_ in contents(state)] == [1]
    assert not leftover.parent.exists()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["update.json", "files/model.safetensors", "files", ""])
@pytest.mark.parametrize("kind", [pipe, link, link_to_itself, Path.mkdir, Path.touch])
def test_what_is_of_another_kind_than_was_stored_is_named_at_once(
    source: Source, tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"))
    place = tmp_path / "state" / "00000001" / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    kind(place)
    with opened(tmp_path / "state") as state:
        if (name, kind) in (("files", Path.mkdir), ("files/model.safetensors", Path.touch)):
            assert len(state.read()) == 1  # its verification finds what it lacks
            return
        with pytest.raises(DamagedStateError, match="00000001"):
            state.read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a device")
def test_a_device_is_named(source: Source, tmp_path: Path) -> None:
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"))
        place = tmp_path / "state" / "00000001" / "files" / "model.safetensors"
        place.unlink()
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends
        with pytest.raises(DamagedStateError, match=r"00000001/files/model\.safetensors is not a regular file"):
            state.read()


@pytest.mark.parametrize("kind", [pipe, link_to_itself, Path.touch])
def test_what_stands_where_updates_are_written_is_removed(
    source: Source, tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    (tmp_path / "state").mkdir()
    kind(tmp_path / "state" / "incoming")
    with opened(tmp_path / "state") as state:
        store(state, source, (1, "full"))
        assert [version for version, *_ in contents(state)] == [1]


def test_what_cannot_be_stored_leaves_the_last_as_it_was(state: StateDirectory, source: Source, tmp_path: Path) -> None:
    store(state, source, (1, "full"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        state.store(record(2, "full"), {"model.safetensors": tmp_path / "gone"})
    assert [update.record.weight_version for update in state.read()] == [1]
    assert not (tmp_path / "state" / "incoming").exists()
