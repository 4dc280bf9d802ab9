"""The table of metrics on the page is the registry; the text that is scraped is what Prometheus wants."""

from __future__ import annotations

import subprocess

from prometheus_client.metrics_core import Metric

from tests.monitoring.observed import OBSERVING, exposed, needs_prometheus

HEADING = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
_SUFFIXES = {"counter": "_total", "info": "_info"}
_LISTED = {"encoding", "kind", "phase", "state", "status"}


def table() -> str:
    """The table of all metrics, as it stands on the page."""
    return HEADING + "".join(map(_row, exposed().registry.collect()))


def _row(family: Metric) -> str:
    name = family.name + _SUFFIXES.get(family.type, "")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = ", ".join(f"`{label}`{_values(family, label) if label in _LISTED else ''}" for label in labels)
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |\n".replace("|  |", "| |")


def _values(family: Metric, label: str) -> str:
    return f" ({', '.join(dict.fromkeys(sample.labels[label] for sample in family.samples))})"


def test_the_table_of_metrics_is_the_registry() -> None:
    assert table() in OBSERVING.read_text()


@needs_prometheus
def test_promtool_has_nothing_to_say_about_the_metrics() -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposed().render(), capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
