"""A real Prometheus that scrapes one service every second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
import yaml

from examples.processes import free_port
from tests.monitoring.observed import write_rules
from tests.support.waiting import wait_until

START_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Prometheus:
    """Answers queries about what it has scraped."""

    http: httpx.Client
    config: Path

    def query(self, expression: str) -> list[float]:
        """Return the values of an instant query, those that are not finite left out; raise if it is refused."""
        answer = self.http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        values = (float(sample["value"][1]) for sample in answer.json()["data"]["result"])
        return [value for value in values if isfinite(value)]

    def rules(self) -> list[dict[str, Any]]:
        """Return the alerts, with the errors of their last evaluation."""
        groups = self.http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def prometheus_process(directory: Path, target: httpx.URL) -> Iterator[Prometheus]:
    """Scrape ``target`` as the job that the PodMonitor makes of pods, from before the block to its end."""
    config, address = _write_config(directory, target), f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",  # or it would listen on all of them
        "--log.level=warn",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=20) as http:
            prometheus = Prometheus(http, config)
            wait_until(lambda: _scrapes(prometheus, process), deadline_seconds=START_SECONDS)
            yield prometheus
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _write_config(directory: Path, target: httpx.URL) -> Path:
    path = directory / "prometheus.yml"
    job = {"job_name": "vigor-service", "static_configs": [{"targets": [f"{target.host}:{target.port}"]}]}
    content = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(write_rules(directory))],
        "scrape_configs": [job],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def _scrapes(prometheus: Prometheus, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended"
    try:
        return prometheus.http.get("/-/ready").is_success and prometheus.query("up") == [1.0]
    except httpx.ConnectError:
        return False
