"""How a client reaches its service: directly or through the environment's proxy, and with which trusted certificates.

A client has one service, so this is decided once, for that service. Settings about other hosts (a SOCKS proxy that
needs a package, an odd entry of ``NO_PROXY``, a certificate file for HTTPS) do not stop a client that needs none of
them. A setting that the client needs and cannot use is an error that names the variable.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from os import environ
from urllib.request import getproxies

import httpx

from vigor_client.errors import NetworkSettingError

CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_MAX_PORT = 65_535


def _trusts_no_server() -> ssl.SSLContext:
    """Return a context for connections without TLS: it reads nothing from the environment and trusts no certificate."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True, slots=True)
class Network:
    """Opens connection pools with these trusted certificates: through the proxy, or directly if it is None."""

    proxy: httpx.Proxy | None = None
    certificates: ssl.SSLContext = field(default_factory=_trusts_no_server)

    def open_pool(
        self, url: httpx.URL, headers: Mapping[str, str], transport: httpx.BaseTransport | None
    ) -> httpx.Client:
        return httpx.Client(
            base_url=url,
            headers=headers,
            transport=transport,
            proxy=self.proxy,
            verify=self.certificates,
            trust_env=False,
        )

    def open_async_pool(
        self, url: httpx.URL, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport | None
    ) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=url,
            headers=headers,
            transport=transport,
            proxy=self.proxy,
            verify=self.certificates,
            trust_env=False,
        )


def checked_url(base_url: str) -> httpx.URL:
    """Return a service's URL.

    Raises:
        ValueError: it is not a valid URL, or it holds a key, which must be given elsewhere.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the service's URL cannot be read: {error}") from error
    if url.userinfo:
        raise ValueError("the URL holds a user name or a password; give the key as api_key instead")
    if url.scheme not in ("http", "https") or url.query or url.fragment or not _can_be_connected_to(url):
        raise ValueError(f"{base_url!r} is not a service's URL; give one like http://127.0.0.1:8000")
    return url


def network_for(url: httpx.URL) -> Network:
    """Read the environment's settings for the service at ``url``.

    Raises:
        NetworkSettingError: a setting that applies cannot be used; names the variable and never shows a password.
    """
    proxy = proxy_for(url, getproxies())
    network = Network(proxy, _certificates()) if url.scheme == "https" else Network(proxy)
    if proxy is not None and proxy.url.scheme == "https":
        proxy.ssl_context = _certificates()
    return network


def proxy_for(url: httpx.URL, proxies: Mapping[str, str]) -> httpx.Proxy | None:
    """Return the proxy for ``url``; None if it is reached directly, as every address of this machine is.

    ``proxies`` is what ``urllib.request.getproxies`` returns: proxies by scheme, and ``no`` for ``NO_PROXY``.

    Raises:
        NetworkSettingError: the proxy that applies cannot be used.
    """
    if is_this_machine(url.host) or _is_exempt(url, proxies.get("no", "")):
        return None
    for scheme in (url.scheme, "all"):
        if address := proxies.get(scheme, "").strip():
            return _proxy(f"{scheme.upper()}_PROXY", address, url.host)
    return None


def _proxy(variable: str, address: str, host: str) -> httpx.Proxy:
    cure = f"correct or unset it, or name {host} in NO_PROXY"
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL):
        proxy = None
    if proxy is None or not _can_be_connected_to(proxy.url):  # the address may hold a password: it is not shown
        raise NetworkSettingError(
            f"{variable} is not a proxy that can be used, such as http://proxy:3128 or socks5://proxy:1080: {cure}"
        )
    if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise NetworkSettingError(f"{variable} is a SOCKS proxy, which needs pip install 'httpx[socks]': {cure}")
    return proxy


def _certificates() -> ssl.SSLContext:
    given = [f"{name}={value}" for name in CERTIFICATE_VARIABLES if (value := environ.get(name))]
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        said = error.strerror or str(error)
        raise NetworkSettingError(f"{', '.join(given) or 'the certificates'} cannot be used: {said}") from error


def _can_be_connected_to(url: httpx.URL) -> bool:
    """Return whether the system's functions accept host and port; if not, they raise errors of their own kinds."""
    try:
        url.host.encode("idna")
    except UnicodeError:
        return False
    return bool(url.host) and (url.port is None or 0 < url.port <= _MAX_PORT)


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine itself, which is always reached directly."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_exempt(url: httpx.URL, no_proxy: str) -> bool:
    return any(_names(entry, url) for entry in no_proxy.replace(",", " ").lower().split())


def _names(entry: str, url: httpx.URL) -> bool:
    """Return whether an entry (``*``, a domain, an address or a network, with a port or without) names the service."""
    if entry == "*":
        return True
    scheme, _, place = entry.rpartition("://")
    if scheme not in ("", "all", url.scheme):
        return False
    host = url.host.lower()
    return any(_is_within(host, part) for part in (place, _without_port(place, url)))


def _without_port(place: str, url: httpx.URL) -> str:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return place.removesuffix(f":{port}").removeprefix("[").removesuffix("]")


def _is_within(host: str, part: str) -> bool:
    try:
        return ip_address(host) in ip_network(part, strict=False)
    except ValueError:
        domain = part.lstrip("*.")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
