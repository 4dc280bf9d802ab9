"""The overlay ray's commands on two hosts: a service with two engines comes up, and opens the ports of the policy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from tests.k8s.rendering import Manifest, container, engines, front, named_ports, needs_kubectl, render, the
from tests.k8s.settings import KEYS, mounted
from tests.support.ray_service import assert_right, group, needs_ray, num_engines_up, weights_of
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.two_hosts import OWN_RAY_DIRECTORY, Host, two_hosts, why_not_possible
from tests.support.waiting import wait_until
from vigor_client import VigorClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs_kubectl,
    needs_ray,
    pytest.mark.skipif((missing := why_not_possible()) is not None, reason=str(missing)),
]
DEADLINE_SECONDS = 240.0
STORE_BYTES = 128 << 20
POD = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
AS_IN_A_POD = [*POD, *OWN_RAY_DIRECTORY]
"""A directory of its own for Ray, and processes that end with the first one."""
NO_MONITOR = "--no-monitor"
"""KubeRay adds it: the autoscaler is a container of its own."""
CPUS = {"head": "0", "engine": "2"}
"""Cores stand for GPUs."""


def ray_start(workload: Manifest, num_cpus: str, *given: str) -> list[str]:
    """Return the command that KubeRay makes of a group's parameters, with a small store."""
    told = {**workload["spec"]["rayStartParams"], "object-store-memory": str(STORE_BYTES), "num-cpus": num_cpus}
    return ["ray", "start", *given, "--block", *(f"--{name}={value}" for name, value in told.items())]


@contextmanager
def pod(host: Host, command: list[str], variables: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a container's command on a host until the block ends."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with host.entered(), log.open("ab") as stream:
        process = subprocess.Popen(
            [*AS_IN_A_POD, *command], env={**os.environ, **paths, **variables}, stdout=stream, stderr=stream
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


def settings(manifests: list[Manifest], directory: Path, checkpoint: Path) -> dict[str, str]:
    """Return the service's variables, with a tiny model on cores, and this directory for what the pod mounts."""
    return mounted(manifests, directory) | {"VIGOR_MODEL": str(checkpoint), "VIGOR_DEVICE": "cpu"}


def open_ports(host: Host) -> set[int]:
    """Return the ports that other hosts reach."""
    command = ["ip", "netns", "exec", host.name, "ss", "--no-header", "--listening", "--tcp", "--numeric"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    addresses = [line.split()[3].rpartition(":") for line in lines]
    return {int(port) for address, _, port in addresses if not address.startswith(("127.", "[::1]", "[::ffff:127."))}


def test_the_commands_of_the_overlay_make_a_service_with_two_engines_and_open_no_other_port(
    tmp_path: Path,
) -> None:
    manifests = render("ray")
    head, workers = front(manifests), engines(manifests)
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with two_hosts() as hosts, ExitStack() as stack:
        first, second = hosts.first, hosts.second
        started = ray_start(head, CPUS["head"], "--head", NO_MONITOR, f"--node-ip-address={first.address}")
        told = {"KUBERAY_GEN_RAY_START_CMD": " ".join(started)} | settings(manifests, tmp_path, checkpoint) | token
        command = [*container(head)["command"], *container(head)["args"]]
        stack.enter_context(pod(first, command, told, tmp_path / "head.log"))
        join = f"--address={first.address}:{head['spec']['rayStartParams']['port']}"
        worker = ray_start(workers, CPUS["engine"], join, f"--node-ip-address={second.address}")
        stack.enter_context(pod(second, worker, token, tmp_path / "worker.log"))
        stack.enter_context(first.entered())
        client = stack.enter_context(
            VigorClient(f"http://{first.address}:8000", api_key=KEYS["VIGOR_PUBLISH_KEY_FILE"], max_retries=0)
        )

        wait_until(lambda: num_engines_up(client) == int(told["VIGOR_ENGINES"]), deadline_seconds=DEADLINE_SECONDS)
        client.publish_weights(weights_of(checkpoint, 1), weight_version=1)
        for number in range(4):
            assert_right(client.score([group(number)]), checkpoint, number)
        (rule,) = the(manifests, "NetworkPolicy", "vigor-ray")["spec"]["ingress"]
        allowed = named_ports(rule)
        assert open_ports(first) <= allowed | {8000}
        assert open_ports(second) <= allowed
        assert open_ports(first) & open_ports(second)
