"""Clients behind proxies and with certificates of their own: what the environment says is done, or named."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qgstream
from qgstream import AsyncPublisher, ClientError, Publisher, RequestRefused, Unreachable
from qgstream.cli import main
from qgstream.client.transport import Ways
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.proxying import Proxy, set_environment
from tests.scripted import Script, enveloped, own, refused, stream

# Nobody but the proxy knows this host.
HOST = "sse.qgstream.test"
STREAM = stream(own("connected", id="e-0", replay="none"), enveloped("e-1"))
TAKEN = refused(200, '{"id": "e-1", "subscribers": 0}')

# What each kind of client does once, and what it is answered.
Once = Callable[[str], Awaitable[str]]


PATIENCE_SECONDS = 60.0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what cannot succeed, however long it is tried."""
    monkeypatch.setitem(globals(), "PATIENCE_SECONDS", 1.0)


async def listen_once(url: str) -> str:
    async with qgstream.connect(url, give_up_seconds=PATIENCE_SECONDS) as events:
        async for event in events:
            return event.id
    raise AssertionError("the iteration ended")


async def publish_once(url: str) -> str:
    def call() -> str:
        with Publisher(url, key="hush", deadline_seconds=PATIENCE_SECONDS) as publisher:
            return publisher.publish("t", 1).id

    return await asyncio.to_thread(call)


async def publish_once_on_the_loop(url: str) -> str:
    async with AsyncPublisher(url, key="hush", deadline_seconds=PATIENCE_SECONDS) as publisher:
        return (await publisher.publish("t", 1)).id


CLIENTS = {
    "connect": (listen_once, STREAM),
    "Publisher": (publish_once, TAKEN),
    "AsyncPublisher": (publish_once_on_the_loop, TAKEN),
}
each_client = pytest.mark.parametrize(("once", "answer"), CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    """The file of a certificate for HOST, and a server's context with it."""
    certfile, keyfile = make_certificate(tmp_path_factory.mktemp("certificate"), name=HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    return str(certfile), context


# Through a proxy.


@each_client
@pytest.mark.gen_test
async def test_plain_http_goes_through_the_proxy(
    once: Once, answer: bytes, monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, ssl.SSLContext]
) -> None:
    async with Script([answer]) as server, Proxy(credentials="ann:p@ss") as proxy:
        set_environment(monkeypatch, http_proxy=f"ann:p%40ss@127.0.0.1:{proxy.port}", SSL_CERT_FILE="/gone")
        assert await once(f"http://{HOST}:{server.port}") == "e-1"
        assert proxy.asked[0].split(" ")[1].startswith(f"http://{HOST}:{server.port}/events")
        assert server.header("Proxy-Authorization") == [""]


@each_client
@pytest.mark.parametrize("is_tls_to_the_proxy", [False, True], ids=["http proxy", "https proxy"])
@pytest.mark.gen_test
async def test_https_goes_through_a_tunnel(
    once: Once, answer: bytes, is_tls_to_the_proxy: bool, monkeypatch: pytest.MonkeyPatch,
    certificate: tuple[str, ssl.SSLContext],
) -> None:  # fmt: skip
    certfile, tls = certificate
    async with (
        Script([answer], tls=tls) as server,
        Proxy(credentials="ann:hush", tls=tls if is_tls_to_the_proxy else None) as proxy,
    ):
        scheme = "https" if is_tls_to_the_proxy else "http"
        set_environment(monkeypatch, HTTPS_PROXY=f"{scheme}://ann:hush@127.0.0.1:{proxy.port}", SSL_CERT_FILE=certfile)
        assert await once(f"https://{HOST}:{server.port}") == "e-1"
        assert proxy.asked == [f"CONNECT {HOST}:{server.port} HTTP/1.1"]
        assert server.header("Proxy-Authorization") == [""]


@each_client
@pytest.mark.gen_test
async def test_a_proxy_that_refuses_is_named(
    once: Once, answer: bytes, monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, ssl.SSLContext]
) -> None:
    async with Script([answer]) as server, Proxy(credentials="ann:hush") as proxy:
        set_environment(monkeypatch, all_proxy=f"http://127.0.0.1:{proxy.port}", SSL_CERT_FILE=certificate[0])
        said = r"407 Proxy Authentication Required \(through the proxy that all_proxy names\)"
        with pytest.raises(ClientError, match=said):
            await once(f"https://{HOST}:{server.port}")
        with pytest.raises(RequestRefused, match=r"^407 "):
            await once(f"http://{HOST}:{server.port}")
        assert len(proxy.asked) == 2  # the same again would get the same answer


@pytest.mark.usefixtures("impatient")
@pytest.mark.gen_test
async def test_a_proxy_that_may_be_well_in_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, ssl.SSLContext]
) -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    async with Proxy(answer=away) as proxy:
        set_environment(monkeypatch, https_proxy=f"http://127.0.0.1:{proxy.port}", SSL_CERT_FILE=certificate[0])
        with pytest.raises(Unreachable, match=r"503 Service Unavailable \(through the proxy that https_") as caught:
            await publish_once(f"https://{HOST}:1")
        assert not caught.value.is_uncertain  # the server has heard nothing
        assert len(proxy.asked) > 1


@each_client
@pytest.mark.usefixtures("impatient")
@pytest.mark.gen_test
async def test_a_proxy_that_is_not_there_is_named(once: Once, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, http_proxy=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unreachable, match=r"\(through the proxy that http_proxy names\)") as caught:
        await once(f"http://{HOST}:1")
    assert not caught.value.is_uncertain


@pytest.mark.gen_test
async def test_a_redirect_takes_the_way_of_where_it_leads(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, ssl.SSLContext]
) -> None:
    certfile, tls = certificate
    async with Script([STREAM], tls=tls) as there, Proxy() as proxy:
        location = f"Location: https://{HOST}:{there.port}/events"
        async with Script([refused(302, "", location)]) as here:
            set_environment(
                monkeypatch, https_proxy=f"http://127.0.0.1:{proxy.port}", SSL_CERT_FILE=certfile, no_proxy="127.0.0.1"
            )
            assert await listen_once(here.url) == "e-1"
        assert proxy.asked == [f"CONNECT {HOST}:{there.port} HTTP/1.1"]


# Without one.

HARMLESS: dict[str, dict[str, str]] = {
    "a network in NO_PROXY": {"NO_PROXY": "fd00::/8"},
    "nonsense in NO_PROXY": {"NO_PROXY": "[::1,::/999,http://[,:x,10.0.0.0/x, ,"},
    "SOCKS for others": {"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "127.0.0.1"},
    "nonsense for others": {"ALL_PROXY": "http://[::1", "NO_PROXY": "127.0.0.0/8"},
    "a proxy for https": {"HTTPS_PROXY": "gopher://127.0.0.1:1"},
    "no file of certificates": {"SSL_CERT_FILE": "/gone"},
    "no directory of certificates": {"SSL_CERT_DIR": "/gone"},
    "no log of keys": {"SSLKEYLOGFILE": "/gone/keys"},
}


@each_client
@pytest.mark.parametrize("variables", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.gen_test
async def test_what_plain_http_does_not_need_is_not_in_its_way(
    once: Once, answer: bytes, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, **variables)
    async with Script([answer]) as server:
        assert await once(server.url) == "e-1"


HARMFUL: dict[str, tuple[str, dict[str, str]]] = {
    "no URL": ("http", {"http_proxy": "http://ann:hush@[::1"}),
    "a port that is none": ("http", {"http_proxy": "http://ann:hush@127.0.0.1:99999"}),
    "a host that is none": ("http", {"http_proxy": "http://ann:hush@a\x7fb"}),
    "a scheme of another kind": ("http", {"ALL_PROXY": "ftp://ann:hush@127.0.0.1"}),
    "a package that is not there": ("http", {"ALL_PROXY": "socks5h://ann:hush@127.0.0.1"}),
    "a bad proxy for https": ("https", {"HTTPS_PROXY": "://"}),
    "no file of certificates": ("https", {"SSL_CERT_FILE": "/gone"}),
    "no directory of certificates": ("https", {"SSL_CERT_DIR": "/gone"}),
}


@each_client
@pytest.mark.parametrize(("scheme", "variables"), HARMFUL.values(), ids=HARMFUL)
@pytest.mark.gen_test
async def test_what_cannot_be_used_is_named(
    once: Once, answer: bytes, scheme: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    set_environment(monkeypatch, **variables)
    with pytest.raises(ClientError) as caught:
        await once(f"{scheme}://127.0.0.1:1")
    (variable,) = variables
    assert type(caught.value) is ClientError
    assert str(caught.value).startswith(f"{variable}: ")
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("command", ["tail", "publish"])
@pytest.mark.parametrize(("scheme", "variables"), HARMFUL.values(), ids=HARMFUL)
def test_commands_end_with_that_sentence(
    command: str, scheme: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "socksio", None)
    set_environment(monkeypatch, **variables)
    assert main([command, "--url", f"{scheme}://127.0.0.1:1", *(["t", "1"] if command == "publish" else [])]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{next(iter(variables))}: ")
    assert err.count("\n") == 1


def test_a_proxy_that_is_spoken_to_over_tls_needs_certificates_for_plain_http_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch, http_proxy="https://127.0.0.1:1", SSL_CERT_FILE="/gone")
    with pytest.raises(ClientError, match=r"^SSL_CERT_FILE: cannot read '/gone'"):
        Publisher(f"http://{HOST}")


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
def test_a_publisher_says_so_when_it_is_made(
    kind: type[Publisher | AsyncPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, SSL_CERT_FILE="/gone")
    with pytest.raises(ClientError, match=r"^SSL_CERT_FILE: "):
        kind(f"https://{HOST}")


@each_client
@pytest.mark.gen_test
async def test_passwords_of_a_netrc_are_nobodys_business(
    once: Once, answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("default login ann password hush\n")
    (tmp_path / ".netrc").chmod(0o600)
    set_environment(monkeypatch, HOME=str(tmp_path), NETRC=str(tmp_path / ".netrc"))
    async with Script([answer]) as server:
        await once(server.url)
        assert server.header("Authorization")[0] in ("", "Bearer hush")


@pytest.mark.gen_test
async def test_the_key_log_of_a_developer_is_written(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, ssl.SSLContext], tmp_path: Path
) -> None:
    certfile, tls = certificate
    set_environment(monkeypatch, SSL_CERT_FILE=certfile, SSLKEYLOGFILE=str(tmp_path / "keys"))
    async with Script([STREAM], tls=tls) as server:
        assert await listen_once(server.url) == "e-1"
    assert "CLIENT_TRAFFIC_SECRET_0 " in (tmp_path / "keys").read_text()


PARTS = st.lists(
    st.sampled_from(["http", "socks5", "://", ":", "/", "[", "]", "@", "127.0.0.1", "::1", "a", "%", "99999", "*", ","])
    | st.text(max_size=3)
).map("".join)


@given(st.dictionaries(st.sampled_from(["http_proxy", "HTTPS_PROXY", "all_proxy", "NO_PROXY"]), PARTS), st.data())
def test_whatever_the_environment_says_there_is_a_way_or_a_sentence(
    environ: dict[str, str], data: st.DataObject
) -> None:
    host = data.draw(st.sampled_from(["127.0.0.1", "[::1]", "a.b", "bücher.example"]))
    ways = Ways(False, environ, lambda **options: options)
    for scheme in ("http", "https"):
        try:
            ways.to(httpx.URL(f"{scheme}://{host}:8000/events"))
        except ClientError as error:
            assert str(error).partition(":")[0] in environ  # noqa: PT017  # it need not be raised
