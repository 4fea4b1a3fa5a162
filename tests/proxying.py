"""A proxy as companies have them: CONNECT, and requests in absolute form. Every host is this one."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import pytest

# What decides how clients reach a server, and whom they trust.
VARIABLES = (
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "REQUEST_METHOD", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "NETRC",
)  # fmt: skip


def set_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """These variables, and none that a developer has set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@dataclass
class Proxy:
    """Listens on a free port of the loopback. `asked` has the request line of each connection.

    `credentials` (user:password) are asked for with 407 when there are any; `answer` is said to everybody else instead
    of what they want; `tls` is for clients that speak TLS to the proxy itself.
    """

    credentials: str = ""
    answer: bytes = b""
    tls: ssl.SSLContext | None = None
    asked: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # one of the two has left, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n").split("\r\n")
        self.asked.append(line)
        method, target, _ = line.split(" ")
        given = [each for each in headers if each.lower().startswith("proxy-authorization: ")]
        wanted = f"Proxy-Authorization: Basic {b64encode(self.credentials.encode()).decode()}"
        if self.credentials and given != [wanted]:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if self.answer:
            writer.write(self.answer)
            return
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", parts.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            # RFC 9112, 3.2.1: what a server is sent is the path.
            path = parts._replace(scheme="", netloc="").geturl()
            kept = [each for each in headers if each not in given]
            to_server.write("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "", ""]).encode())
        ways = [asyncio.create_task(_copy(reader, to_server)), asyncio.create_task(_copy(from_server, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
