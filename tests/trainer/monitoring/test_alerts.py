"""Alerts of trackers, none of which has to be installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vigor_trainer.monitoring.alerts import tracker_alerts


class FakeTrackers:
    """Loads modules whose `alert` keeps what it is told, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[tuple[str, str, str]] = []
        self._error = error

    def load(self, name: str) -> object:
        return SimpleNamespace(alert=lambda title, text: self._alert(name, title, text))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]

    def _alert(self, name: str, title: str, text: str) -> None:
        if self._error is not None:
            raise self._error
        self.told.append((name, title, text))


def test_each_tracker_in_use_is_told() -> None:
    trackers = FakeTrackers()
    for alert in tracker_alerts(["tensorboard", "trackio", "wandb"], trackers.load):
        alert("vigor: entropy", "It fell.")
    assert trackers.told == [("wandb", "vigor: entropy", "It fell."), ("trackio", "vigor: entropy", "It fell.")]
    assert tracker_alerts(["tensorboard"], trackers.load) == []


def test_a_tracker_without_alerts_is_left_alone() -> None:
    assert tracker_alerts(["trackio"], lambda _: object()) == []


def test_a_tracker_that_fails_does_not_end_the_run_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    [alert] = tracker_alerts(["wandb"], FakeTrackers(RuntimeError("no\nrun")).load)
    alert("title", "text")
    assert capsys.readouterr().out == "the alert to wandb failed: no run\n"
