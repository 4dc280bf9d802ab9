"""Alerts of the trackers that a run reports to: W&B's and trackio's, where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

Alert = Callable[[str, str], None]
"""Takes a title and a text."""

TRACKERS = ("wandb", "trackio")


def tracker_alerts(report_to: Sequence[str], load: Callable[[str], object] = import_module) -> list[Alert]:
    """Return the alerts of those trackers among ``report_to`` whose package has them."""
    return [
        _alert(name, function)
        for name in TRACKERS
        if name in report_to and callable(function := getattr(load(name), "alert", None))
    ]


def _alert(name: str, function: Callable[..., object]) -> Alert:
    def alert(title: str, text: str) -> None:
        try:
            function(title=title, text=text)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises: training goes on, and the line says so
            print(f"the alert to {name} failed: {' '.join(str(error).split())}", flush=True)

    return alert
