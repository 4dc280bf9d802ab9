import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from vigor_service.errors import StagingFullError, StartupError
from vigor_service.weights.staging import StagingArea


def test_a_directory_is_made_removed_and_everything_goes_at_the_end(tmp_path: Path) -> None:
    area = StagingArea(tmp_path / "staging")
    first, second = area.create("a"), area.create("b")
    (first / "file").write_bytes(b"x")
    asyncio.run(area.remove(first))
    assert not first.exists()
    assert second.exists()
    area.close()
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from vigor_service.weights.staging import StagingArea;"
        "area = StagingArea(pathlib.Path(sys.argv[1])); (area.create('update') / 'file').write_bytes(b'x'); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == 9
    assert len(list(tmp_path.rglob("file"))) == 1
    area = StagingArea(tmp_path)
    assert list(tmp_path.rglob("file")) == []
    area.close()


def test_the_directory_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = StagingArea(tmp_path)
    update = living.create("update")
    other = StagingArea(tmp_path)
    assert update.exists()
    other.close()
    assert update.exists()
    living.close()


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "also-mine").mkdir()
    StagingArea(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["also-mine", "mine.txt"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartupError, match="link"):
        StagingArea(tmp_path / "link")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StartupError, match="staging directory"):
        StagingArea(tmp_path / "file" / "staging")


def test_more_bytes_than_are_free_are_refused(tmp_path: Path) -> None:
    area = StagingArea(tmp_path)
    area.require_free_bytes(1)
    with pytest.raises(StagingFullError, match="are free"):
        area.require_free_bytes(2**62)
    area.close()
