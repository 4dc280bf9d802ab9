"""Free memory as files of the kernel tell it; the files are the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vigor_service.engine.memory.free_memory import free_host_bytes

GIB = 1 << 30


def _write(root: Path, **files: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 8 GiB available; its process is in no control group yet."""
    _write(tmp_path / "proc", meminfo=f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB")
    return tmp_path / "proc"


def test_without_a_limit_it_is_what_the_machine_has_available(proc: Path, tmp_path: Path) -> None:
    assert free_host_bytes(proc, tmp_path / "cgroup") == 8 * GIB


def test_a_group_of_version_2_limits_it_and_its_file_cache_is_free(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self", cgroup="0::/app")
    _write(
        tmp_path / "cgroup/app",
        memory__max=4 * GIB,
        memory__current=3 * GIB,
        memory__stat=f"anon 5\ninactive_file {2 * GIB}",
    )
    assert free_host_bytes(proc, tmp_path / "cgroup") == 3 * GIB


def test_a_group_of_version_1_limits_it(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self", cgroup="8:pids:/app\n4:cpu,memory:/app\n0::/")
    _write(tmp_path / "cgroup/memory/app", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    assert free_host_bytes(proc, tmp_path / "cgroup") == GIB


def test_the_group_with_the_least_left_counts_also_above_an_unlimited_one(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self", cgroup="0::/outer/inner")
    _write(tmp_path / "cgroup/outer", memory__max=GIB, memory__current=GIB // 4)
    _write(tmp_path / "cgroup/outer/inner", memory__max="max", memory__current=GIB // 4)
    assert free_host_bytes(proc, tmp_path / "cgroup") == GIB - GIB // 4


def test_a_container_that_sees_only_its_own_group_at_the_root_is_limited_by_it(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self", cgroup="0::/not/visible/here")
    _write(tmp_path / "cgroup", memory__max=GIB, memory__current=0)
    assert free_host_bytes(proc, tmp_path / "cgroup") == GIB


def test_a_group_beyond_its_limit_has_nothing_left(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self", cgroup="0::/")
    _write(tmp_path / "cgroup", memory__max=GIB, memory__current=2 * GIB)
    assert free_host_bytes(proc, tmp_path / "cgroup") == 0


def test_where_the_kernel_tells_nothing_nothing_is_made_up(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path / "proc", tmp_path / "cgroup") is None


def test_this_machine_has_some() -> None:
    free = free_host_bytes()
    assert free is not None
    assert free > 0
