"""What the environment says about proxies and certificates, and what of it a client takes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from tests.client.cli.command_line_fake import DEADLINE_SECONDS, CommandLineFake, serving
from tests.support.preloaded_process import preloaded
from vigor_client import AsyncVigorClient, NetworkSettingError, VigorClient, VigorError
from vigor_client.transport.network import CERTIFICATE_VARIABLES, checked_url, proxy_for

PROXY = "http://proxy.example:3128"
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.lower().endswith("_proxy") and name not in CERTIFICATE_VARIABLES
}
ODD = (
    {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    {"all_proxy": "socks://127.0.0.1:1080", "no_proxy": "::1/128,[::1],fd00::/8,http://[,*.a b"},
    {"HTTP_PROXY": "http://user:s3cret@[", "HTTPS_PROXY": "://"},
    {"HTTP_PROXY": "http://a..b:99999"},
    {"SSL_CERT_FILE": "/nowhere/ca.pem", "SSL_CERT_DIR": "/nowhere", "SSLKEYLOGFILE": "/nowhere/keys"},
    {"LC_ALL": "xx_YY.UTF-8", "LANG": "nonsense", "LANGUAGE": "xx"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


def command(*arguments: str, own: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vigor`; in an interpreter of its ``own`` where that reads the environment as it starts."""
    return subprocess.run(
        [sys.executable, "-m", "vigor_client.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**(CLEAN if own else preloaded(CLEAN)), **environment},
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("environment", ODD, ids=lambda environment: ",".join(environment))
def test_no_environment_stops_a_client_whose_service_is_on_this_machine(environment: dict[str, str]) -> None:
    with serving(CommandLineFake()) as url:
        done = command("status", "--url", url, own="LC_ALL" in environment, **environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("", "http://service.example:8000", False),
        ("*", "http://service.example:8000", True),
        ("service.example", "http://service.example:8000", True),
        ("a.b, Example", "http://service.example:8000", True),
        (".example", "http://service.example:8000", True),
        ("*.example", "http://service.example:8000", True),
        ("ample", "http://service.example:8000", False),
        (".", "http://service.example:8000", False),
        ("service.example:8000", "http://service.example:8000", True),
        ("service.example:8001", "http://service.example:8000", False),
        ("service.example:443", "https://service.example", True),
        ("https://service.example", "http://service.example", False),
        ("all://service.example", "http://service.example", True),
        ("10.0.0.0/8 other", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000", False),
        ("10.1.2.3", "http://10.1.2.3:8000", True),
        ("[fd00::1]:8000", "http://[fd00::1]:8000", True),
        ("fd00::/8", "http://[fd00::1]:8000", True),
        ("http://[,::1/200,10.0.0.0/99,%", "http://10.1.2.3:8000", False),
    ],
)
def test_no_proxy_names_domains_addresses_and_networks(no_proxy: str, url: str, is_direct: bool) -> None:
    proxy = proxy_for(httpx.URL(url), {"all": PROXY, "no": no_proxy})
    assert (proxy is None) == is_direct


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "[::1]"])
def test_an_address_of_this_machine_is_reached_directly(host: str) -> None:
    assert proxy_for(httpx.URL(f"http://{host}:8000"), {"http": PROXY, "all": "socks5://proxy:1080"}) is None


@pytest.mark.parametrize(
    ("proxies", "chosen"),
    [
        ({"http": PROXY, "all": "socks4://proxy"}, PROXY),
        ({"https": "nonsense://", "all": PROXY}, PROXY),
        ({"http": "  ", "all": "proxy.example:3128"}, PROXY),
        ({"https": PROXY}, None),
    ],
)
def test_the_proxy_of_the_urls_own_scheme_comes_first(proxies: Mapping[str, str], chosen: str | None) -> None:
    proxy = proxy_for(httpx.URL("http://service.example"), proxies)
    assert (proxy and str(proxy.url)) == chosen


@pytest.mark.parametrize(
    "address",
    ["socks4://p", "socks://p", "ftp://p", "http://", "http://a..b", "http://p:99999", "://", "[\0"],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable_and_its_password_is_not(address: str) -> None:
    with pytest.raises(NetworkSettingError, match="HTTP_PROXY is not a proxy that can be used") as caught:
        proxy_for(httpx.URL("http://service.example"), {"http": address.replace("//", "//user:s3cret@")})
    assert "name service.example in NO_PROXY" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.skipif("socksio" in sys.modules, reason="the package is there")
def test_a_socks_proxy_without_its_package_is_a_typed_error_of_one_line() -> None:
    done = command("status", "--url", "http://service.example", ALL_PROXY="socks5://user:s3cret@proxy:1080")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("vigor: ALL_PROXY is a SOCKS proxy, which needs pip install 'httpx[socks]'")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
def test_certificates_that_cannot_be_read_are_named_where_they_are_needed(variable: str, tmp_path: Path) -> None:
    place = str(tmp_path / "nowhere" / "file")
    done = command("status", "--url", "https://127.0.0.1:9", own=False, **{variable: place})
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line) == (1, f"vigor: {variable}={place} cannot be used: No such file or directory")


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    done = command("status", "--url", "https://127.0.0.1:9", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert done.stderr.startswith(f"vigor: SSL_CERT_FILE={tmp_path}/ca.pem cannot be used: ")


@pytest.mark.parametrize(
    "url", ["http://a..b", "http://" + "a" * 64, "http://h:99999", "http://h:0", "http://", "h:1", "\0"]
)
def test_a_url_that_no_connection_can_have_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="service's URL"):
        checked_url(url)


def test_requests_for_other_machines_go_through_the_proxy() -> None:
    code = (
        "import sys; from vigor_client import VigorClient; print(VigorClient('http://service.example').ready().status)"
    )
    with serving(CommandLineFake()) as proxy:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**CLEAN, "HTTP_PROXY": proxy}, check=True
        )
    assert done.stdout == "ok\n"


def test_both_clients_say_so_before_they_send_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks4://proxy")
    for client in (VigorClient, AsyncVigorClient):
        with pytest.raises(VigorError, match="ALL_PROXY"):
            client("http://service.example")
    assert asyncio.run(AsyncVigorClient("http://127.0.0.1:9").aclose()) is None
