"""The transports of a client's requests: direct, or through the proxy that the environment names for their URL."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Generic, NoReturn, TypeVar

import certifi
import httpx

from qgstream.client.responses import ClientError, sentence
from qgstream.net import environment
from qgstream.net.environment import BadEnvironment, Proxy

T = TypeVar("T")


def client(verify: ssl.SSLContext | bool, url: httpx.URL | str) -> httpx.Client:
    """Return an httpx client that uses the proxy settings of the environment.

    `verify` selects the certificates that TLS trusts; with True, the environment selects them. Raises `ClientError`
    when the environment leaves no way to reach `url`.
    """
    transport = Transport(verify, dict(os.environ))
    transport.ways.to(httpx.URL(url))
    return httpx.Client(transport=transport, trust_env=False)


def async_client(
    verify: ssl.SSLContext | bool, url: httpx.URL | str, *, follow_redirects: bool = False
) -> httpx.AsyncClient:
    """Do the same as `client` for asyncio."""
    transport = AsyncTransport(verify, dict(os.environ))
    transport.ways.to(httpx.URL(url))
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=follow_redirects)


class Ways(Generic[T]):
    """The transports to servers: with or without TLS, and directly or through a proxy.

    `make` makes an httpx transport when the first request needs it. So http:// loads no certificates, and unused
    proxies cost nothing.
    """

    def __init__(self, verify: ssl.SSLContext | bool, environ: Mapping[str, str], make: Callable[..., T]) -> None:
        self.made: dict[tuple[bool, Proxy | None], T] = {}
        self._verify = verify
        self._environ = environ
        self._make = make

    def to(self, url: httpx.URL) -> tuple[T, Proxy | None]:
        """Return the transport for a URL, and its proxy. Raises `ClientError`."""
        try:
            proxy = environment.proxy_for(url.scheme, url.host, url.port, self._environ)
            way = (url.scheme == "https", proxy)
            # Threads that share a client may make two transports: one is kept, and the other has no connection.
            return self.made.get(way) or self.made.setdefault(way, self._make(**self._options(*way))), proxy
        except BadEnvironment as error:
            raise ClientError(str(error)) from error

    def _options(self, is_tls: bool, proxy: Proxy | None) -> dict[str, Any]:
        # Without TLS, a context without certificates costs nothing.
        verify: ssl.SSLContext | bool = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if is_tls:
            verify = self._trust() if self._verify is True else self._verify
        return {"verify": verify, "trust_env": False, "proxy": None if proxy is None else self._proxy(proxy)}

    def _trust(self) -> ssl.SSLContext:
        return environment.client_tls(self._environ, cafile=certifi.where())

    def _proxy(self, proxy: Proxy) -> httpx.Proxy:
        is_socks = proxy.scheme.startswith("socks")
        if is_socks and find_spec("socksio") is None:
            raise BadEnvironment(
                f"{proxy.variable}: got the scheme {proxy.scheme!r}, which needs a package: pip install socksio"
            )
        try:
            return httpx.Proxy(
                # With both schemes httpcore lets the proxy resolve names, and not every httpx version knows socks5h.
                httpx.URL(scheme="socks5" if is_socks else proxy.scheme, host=proxy.host, port=proxy.port),
                auth=(proxy.username, proxy.password) if proxy.username or proxy.password else None,
                ssl_context=self._trust() if proxy.scheme == "https" else None,
            )
        except (ValueError, httpx.InvalidURL):
            raise environment.no_url(proxy.variable) from None


class Transport(httpx.BaseTransport):
    """Sends each request through its transport."""

    def __init__(self, verify: ssl.SSLContext | bool, environ: Mapping[str, str]) -> None:
        self.ways = Ways(verify, environ, httpx.HTTPTransport)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        way, proxy = self.ways.to(request.url)
        try:
            return way.handle_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            _raise(error, proxy)

    def close(self) -> None:
        for way in self.ways.made.values():
            way.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """Sends each request through its transport, for asyncio."""

    def __init__(self, verify: ssl.SSLContext | bool, environ: Mapping[str, str]) -> None:
        self.ways = Ways(verify, environ, httpx.AsyncHTTPTransport)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        way, proxy = self.ways.to(request.url)
        try:
            return await way.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            _raise(error, proxy)

    async def aclose(self) -> None:
        for way in self.ways.made.values():
            await way.aclose()


def _raise(error: httpx.TransportError, proxy: Proxy | None) -> NoReturn:
    """Raise the error with the proxy's name: without that, the error would seem to be about the server."""
    if proxy is None:
        raise error
    raise type(error)(f"{sentence(error)} (through the proxy that {proxy.variable} names)") from error
