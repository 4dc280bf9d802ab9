"""Engines on two hosts of a real Ray cluster: scores and weights across them, and a link that is cut and comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from tests.support.ray_service import assert_right, group, needs_ray, num_engines_up, weights_of
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.two_hosts import OWN_RAY_DIRECTORY, Host, two_hosts, why_not_possible
from tests.support.waiting import wait_until
from vigor_client import VigorClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    needs_ray,
    pytest.mark.skipif((missing := why_not_possible()) is not None, reason=str(missing)),
]
GCS_PORT = 6379
DEADLINE_SECONDS = 240.0
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private", *OWN_RAY_DIRECTORY]


@contextmanager
def ray_node(host: Host, log: Path, *arguments: str) -> Iterator[None]:
    """Have a node of Ray on a host until the block ends; one that joins has a directory of its own, as elsewhere."""
    isolated = [] if "--head" in arguments else OWN_MOUNTS
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={host.address}"]
    with host.entered(), log.open("ab") as stream:
        node = subprocess.Popen(
            [*isolated, *start, *arguments],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **TOKEN, "RAY_USAGE_STATS_ENABLED": "0"},
            start_new_session=True,
        )
    try:
        yield
    finally:
        subprocess.run(["pkill", "--signal", "KILL", "--session", str(node.pid)], check=False, timeout=30)
        node.wait(30)


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def test_engines_of_two_hosts_score_take_weights_and_come_back_behind_a_link_that_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in TOKEN.items():
        monkeypatch.setenv(name, setting)
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    flags = ["--model", str(checkpoint), "--engines", "2", "--score-cache-entries", "0"]
    with two_hosts() as hosts, ExitStack() as stack:
        address = f"{hosts.first.address}:{GCS_PORT}"
        head = ray_node(hosts.first, tmp_path / "head.log", "--head", f"--port={GCS_PORT}", "--num-cpus=1")
        stack.enter_context(head)
        stack.enter_context(hosts.first.entered())
        wait_until(lambda: accepts(hosts.first.address, GCS_PORT), deadline_seconds=DEADLINE_SECONDS)
        workers = stack.enter_context(ExitStack())
        workers.enter_context(ray_node(hosts.second, tmp_path / "w1.log", f"--address={address}", "--num-cpus=1"))
        service = stack.enter_context(
            service_process(tmp_path, *flags, "--ray-address", address, preloaded=False, wait_ready=False)
        )
        client = stack.enter_context(VigorClient(service.url, max_retries=0))

        wait_until(lambda: num_engines_up(client) == 2, deadline_seconds=DEADLINE_SECONDS)
        client.publish_weights(weights_of(checkpoint, 1), weight_version=1)
        for number in range(6):
            assert_right(client.score([group(number)]), checkpoint, number)
        assert all(engine.num_batches for engine in client.engines().engines), "both have computed"

        with hosts.cut():
            wait_until(lambda: num_engines_up(client) == 1, deadline_seconds=DEADLINE_SECONDS)
            up = [service.metrics()[f'vigor_engine_up{{engine="{engine}"}}'] for engine in range(2)]
            assert sorted(up) == [0, 1]
            assert_right(client.score([group(7)]), checkpoint, 7)
            client.publish_weights(weights_of(checkpoint, 2), weight_version=2)
        workers.close()
        workers.enter_context(ray_node(hosts.second, tmp_path / "w2.log", f"--address={address}", "--num-cpus=1"))
        wait_until(lambda: num_engines_up(client) == 2, deadline_seconds=DEADLINE_SECONDS)
        assert {engine.weight_version for engine in client.engines().engines} == {2}
        for number in range(6):
            assert_right(client.score([group(number)]), checkpoint, number)
