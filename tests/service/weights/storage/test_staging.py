import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from threading import Barrier

import pytest

from vigor_service.errors import StagingFullError, StartupError
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.storage.file_lock import locked, try_lock
from vigor_service.weights.storage.staging import StagingArea


def opened(root: Path) -> StagingArea:
    return StagingArea(root, FileThreads())


def create(area: StagingArea, name: str, *, num_bytes: int = 1) -> Path:
    asyncio.run(area.create(name, num_bytes=num_bytes))
    return area.directory(name)


def left_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "lock")


def test_a_directory_is_made_removed_and_everything_goes_at_the_end(tmp_path: Path) -> None:
    area = opened(tmp_path / "staging")
    first, second = create(area, "a"), create(area, "b")
    (first / "file").write_bytes(b"x")
    asyncio.run(area.remove(first))
    assert not first.exists()
    assert second.exists()
    area.close()
    assert left_in(tmp_path / "staging") == []


_KILLED = """
import asyncio, os, pathlib, sys
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.storage.file_lock import locked, try_lock
from vigor_service.weights.storage.staging import StagingArea
area = StagingArea(pathlib.Path(sys.argv[1]), FileThreads())
asyncio.run(area.create("update", num_bytes=1))
(area.directory("update") / "file").write_bytes(b"x")
os._exit(9)
"""


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == 9
    assert len(list(tmp_path.rglob("file"))) == 1
    area = opened(tmp_path)
    assert list(tmp_path.rglob("file")) == []
    area.close()
    assert left_in(tmp_path) == []


def test_what_a_process_left_that_was_killed_before_its_directory_had_a_lock_is_removed(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef").mkdir()
    opened(tmp_path).close()
    assert left_in(tmp_path) == []


def test_the_directory_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = opened(tmp_path)
    update = create(living, "update")
    other = opened(tmp_path)
    assert update.exists()
    other.close()
    assert update.exists()
    living.close()


def test_a_process_that_starts_leaves_the_directory_alone_that_another_is_making(tmp_path: Path) -> None:
    """The lock of a directory belongs to what opened it: a thread stands for the other process."""
    directory = tmp_path / "0123456789abcdef"
    with ThreadPoolExecutor(1) as other:
        with locked(tmp_path):
            directory.mkdir()
            (directory / "lock").touch()  # there, and not locked yet
            starting = other.submit(opened, tmp_path)
            with pytest.raises(FutureTimeoutError):
                starting.result(0.3)
            lock = try_lock(directory)
        area = starting.result(30)
    assert directory.exists()
    assert lock is not None
    lock.release()
    area.close()


def test_processes_that_start_and_end_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    number, rounds = 4, 10
    together = Barrier(number)

    def live() -> bool:
        together.wait(30)
        area = opened(tmp_path)
        found = create(area, "update").exists()
        area.close()
        return found

    with ThreadPoolExecutor(number) as threads:
        lives = [threads.submit(live) for _ in range(number * rounds)]
        assert all(life.result(60) for life in lives)
    opened(tmp_path).close()
    assert left_in(tmp_path) == []


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "also-mine").mkdir()
    (tmp_path / "0123456789abcdef").symlink_to(tmp_path / "also-mine")
    opened(tmp_path).close()
    assert left_in(tmp_path) == ["0123456789abcdef", "also-mine", "mine.txt"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartupError, match="link"):
        opened(tmp_path / "link")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StartupError, match="staging directory"):
        opened(tmp_path / "file" / "staging")


def test_more_bytes_than_are_free_are_refused(tmp_path: Path) -> None:
    area = opened(tmp_path)
    with pytest.raises(StagingFullError, match="are free"):
        create(area, "update", num_bytes=2**62)
    assert create(area, "update").exists()
    area.close()


def test_a_file_that_is_still_on_its_way_finds_no_directory_once_that_is_removed(tmp_path: Path) -> None:
    area = opened(tmp_path)
    update = create(area, "update")
    with (update / ".part").open("wb"):
        asyncio.run(area.remove(update))
        with pytest.raises(FileNotFoundError):
            (update / ".part").rename(update / "file")
    area.close()
