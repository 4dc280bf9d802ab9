"""A real nginx before the service, with nothing but `proxy_pass`: HTTP/1.0 to the service, bodies of 1 MB at most."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.live_service import live_service
from tests.support.waiting import wait_until
from vigor_client import Completion, Group, ScoreResponse, UnexpectedAnswerError, VigorClient

STOP_SECONDS = 20.0
GROUPS = [
    Group(id=str(index), prompt_ids=[1, 2], completions=[Completion(ids=[3, 4]), Completion(ids=[5])])
    for index in range(20)
]
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def config(directory: Path, port: int, service: str) -> str:
    """The site at its root and below a path; all files of nginx are in the directory."""
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in TEMPORARY)
    return f"""
daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;
events {{}}
http {{
  access_log off; {temporary}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {service}; }}
    location /below/ {{ proxy_pass {service}/; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service's address as nginx has it."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: make tools")
    directory = tmp_path_factory.mktemp("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with live_service(directory / "staging") as service:
        (directory / "nginx.conf").write_text(config(directory, port, str(service.http.base_url).rstrip("/")))
        nginx = subprocess.Popen(["nginx", "-c", directory / "nginx.conf", "-e", directory / "error.log"])
        try:
            wait_until(lambda: _is_ready(f"http://127.0.0.1:{port}/readyz"))
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait(STOP_SECONDS)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("path", ["", "/below"])
def test_groups_are_scored_in_lines_and_in_one_answer(url: str, path: str) -> None:
    with VigorClient(url + path) as client:
        in_lines = client.score(GROUPS)
    body = {"groups": [group.model_dump(exclude_none=True) for group in GROUPS]}
    in_one = httpx.post(f"{url}{path}/v1/score", json=body)
    assert [group.id for group in in_lines.groups] == [group.id for group in GROUPS]
    assert ScoreResponse.model_validate_json(in_one.content).groups == in_lines.groups


@pytest.mark.parametrize("page", ["/below/", "/below/inspector/inspector.js", "/below/docs"])
def test_the_pages_are_served_below_a_path(url: str, page: str) -> None:
    assert httpx.get(url + page).status_code == 200


def test_a_body_that_nginx_refuses_is_told_in_the_users_words(url: str) -> None:
    large = [Group(prompt="a" * (2 << 20), completions=[Completion(ids=[1])])]
    with VigorClient(url) as client, pytest.raises(UnexpectedAnswerError, match="nginx: client_max_body_size"):
        client.score(large)
