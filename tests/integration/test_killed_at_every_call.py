"""Kill -9 at every system call with which an update changes the state directory: before it, or whole, never between."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.killed_store import OneThread, Stored, calls_of_publish, publish, publish_killed
from vigor_service.weights.storage.staging import StagingArea
from vigor_service.weights.storage.state import StateDirectory

Contents = list[tuple[int, dict[str, bytes]]]


def full(version: int) -> Stored:
    files = {f"model-{part}.safetensors": bytes([version, part]) * 3000 for part in range(2)}
    return Stored(version, "full", files)


def delta(version: int) -> Stored:
    return Stored(version, "delta", {"index.json": b"{}", "changes.safetensors": bytes([version]) * 50})


def stored(*updates: Stored) -> Callable[[Path], None]:
    def prepare(root: Path) -> None:
        root.mkdir(exist_ok=True)
        for update in updates:
            publish(root, update)

    return prepare


def killed_before(root: Path) -> None:
    """What earlier kills may have left: half-written, half-removed and superseded updates, and somebody's staging."""
    stored(full(1), delta(2))(root)
    (root / "00000001").rename(root / "aside")
    stored(full(3), delta(4))(root)
    (root / "aside").rename(root / "00000001")
    for leftover in ("incoming/files", "outgoing-0011223344556677/files", "staging/0011223344556677/update"):
        (root / leftover).mkdir(parents=True)
        (root / leftover / "model.safetensors").write_bytes(b"half")


CASES = {
    "the first of all": (stored(), full(1)),
    "a full one over another": (stored(full(1)), full(2)),
    "a full one over deltas": (stored(full(1), delta(2), delta(3)), full(4)),
    "a delta": (stored(full(1)), delta(2)),
    "a delta over deltas": (stored(full(1), delta(2)), delta(3)),
    "a delta after kills": (killed_before, delta(5)),
}


@pytest.fixture(scope="module", autouse=True)
def _strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where strace is missing, or may not attach to another process."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    directory = tmp_path_factory.mktemp("strace")
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        command = ["strace", "-p", str(sleeping.pid), "-o", str(directory / "log")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            may_attach = "attached" in strace.stderr.readline()
            sleeping.kill()
    if not may_attach:
        pytest.skip("strace may not attach to a process here")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_weights_and_nothing_else(tmp_path: Path, name: str) -> None:
    prepare, update = CASES[name]
    template, root = tmp_path / "template", tmp_path / "state"
    prepare(template)
    old = restarted(template, tmp_path / "old")
    new = ([] if update.encoding == "full" else old) + [(update.version, dict(update.files))]
    shutil.copytree(template, root)
    calls = calls_of_publish(root, update, tmp_path / "log")
    assert restarted(root, tmp_path / "copy") == new
    outcomes = [
        outcome_of_kill(template, root, update, call, number, (old, new))
        for call, count in calls.items()
        for number in range(1, count + 1)
    ]
    print(f"{name}: {len(outcomes)} calls, {outcomes.count(old)} old, {outcomes.count(new)} new: {calls}")
    assert len(outcomes) > 30
    assert old in outcomes
    assert new in outcomes


def outcome_of_kill(
    template: Path, root: Path, update: Stored, call: str, number: int, allowed: Sequence[Contents]
) -> Contents:
    """Return what a restart comes back with after the kill; then the update is published once more."""
    shutil.rmtree(root)
    shutil.copytree(template, root)
    assert publish_killed(root, update, call, number), f"{call} was not called {number} times"
    found = contents(root)
    assert found in allowed, f"killed at {call} {number}"
    if found == allowed[0]:
        publish(root, update)
    assert contents(root) == allowed[1], f"killed at {call} {number}, then published once more"
    return found


def restarted(root: Path, copy: Path) -> Contents:
    shutil.copytree(root, copy)
    return contents(copy)


def contents(root: Path) -> Contents:
    """Start as the service does and return what is restored; nothing else may be left."""
    state = StateDirectory(root)
    try:
        updates = state.read()
        StagingArea(state.staging_root, OneThread()).close()
    finally:
        state.close()
    assert {path.name for path in root.iterdir()} == {"lock", "staging", *(update.name for update in updates)}
    assert [path.name for path in (root / "staging").iterdir()] == ["lock"]
    return [
        (update.record.weight_version, {name: path.read_bytes() for name, path in update.files.items()})
        for update in updates
    ]
