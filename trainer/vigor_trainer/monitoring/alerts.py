"""Alerts of the trackers that a run reports to: W&B and trackio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

Alert = Callable[[str, str], None]
"""A function that sends an alert with a title and a text."""

TRACKERS = ("wandb", "trackio")


def tracker_alerts(report_to: Sequence[str], load: Callable[[str], object] = import_module) -> list[Alert]:
    """Return the alert functions of the trackers in ``report_to`` whose package supports alerts."""
    return [
        _alert(name, function)
        for name in TRACKERS
        if name in report_to and callable(function := getattr(load(name), "alert", None))
    ]


def _alert(name: str, function: Callable[..., object]) -> Alert:
    def alert(title: str, text: str) -> None:
        try:
            function(title=title, text=text)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, training continues, and the line says so
            print(f"the alert to {name} failed: {' '.join(str(error).split())}", flush=True)

    return alert
