"""Key sets from a real HTTP server: rotation, outage, garbage."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from qgstream.auth.authenticator import AuthSettings, Credentials, Principal
from qgstream.auth.jwks import MAX_SET_BYTES, KeySet
from qgstream.auth.jwt_settings import JwtSettings
from qgstream.delivery.connection import Connection
from qgstream.errors import ConfigError, Unauthorized, Unavailable
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.service.service import Service
from tests.conftest import ExpectLog
from tests.fakes import connect, turns
from tests.hostile.certificates import make_certificate
from tests.hostile.observing import ask as request
from tests.http.asking import until
from tests.process.test_server import Reloadable
from tests.proxying import set_environment
from tests.serving import RawClient, ServerProcess
from tests.signing import jwk, payload, private_key, sign

ANSWER_SECONDS = 60.0


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def key_set(**names: str) -> bytes:
    """The answer with a set of public keys: key id to name of the pair."""
    return answer(json.dumps({"keys": [jwk(name, "ES256", kid=kid) for kid, name in names.items()]}).encode())


def set_of(issuer: Issuer) -> bytes:
    """The set that it answers with."""
    assert issuer.answer is not None
    return issuer.answer.partition(b"\r\n\r\n")[2]


class Issuer:
    """Says `answer` to whoever connects, byte for byte; None is silence. `requests` has what was asked."""

    def __init__(self, said: bytes | None, tls: ssl.SSLContext | None = None) -> None:
        self.answer = said
        self.tls = tls
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/keys"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Issuer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()  # until the other side has had enough
            else:
                writer.write(self.answer)
                await writer.drain()
        except OSError:
            pass  # it left before the end
        finally:
            writer.close()


def auth(issuer: Issuer, **members: object) -> AuthSettings:
    return AuthSettings.model_validate({"jwt": {"algorithms": ["ES256"], "jwks_url": issuer.url} | members})


def token(name: str, kid: str | None) -> str:
    return sign(payload(exp=time.time() + 600), private_key(name), "ES256", **({} if kid is None else {"kid": kid}))


def ask(service: Service, name: str, kid: str | None) -> Principal:
    return service.auth.authenticate(Credentials(f"Bearer {token(name, kid)}"), time.time())


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert not [record for record in caplog.records if record.exc_info]
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("jwks.")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As in production, in a hundredth of the time."""
    caplog.set_level(logging.INFO)
    defaults = KeySet.__init__.__kwdefaults__
    assert defaults is not None
    assert defaults == {"refresh_seconds": 300.0, "pause_seconds": 10.0, "timeout_seconds": 5.0}
    monkeypatch.setitem(defaults, "refresh_seconds", 60.0)
    monkeypatch.setitem(defaults, "pause_seconds", 0.1)
    monkeypatch.setitem(defaults, "timeout_seconds", 0.5)


@asynccontextmanager
async def serving(settings: AuthSettings) -> AsyncIterator[Service]:
    async with Service(Hub(), auth=settings) as service:
        yield service


@pytest.mark.gen_test
async def test_tokens_are_accepted_once_it_has_started() -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        assert ask(service, "p256", "one").name == "ann"
        assert issuer.requests[0].startswith(b"GET /keys HTTP/1.1\r\n")


@pytest.mark.gen_test
async def test_a_rotation_is_noticed_by_the_first_new_token(caplog: pytest.LogCaptureFixture) -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        issuer.answer = key_set(two="other p256")
        with pytest.raises(Unauthorized) as caught:
            ask(service, "other p256", "two")
        assert caught.value.code == "unknown_key_id"
        await until(lambda: len(issuer.requests) == 2)
        await until(lambda: events(caplog) == ["jwks.loaded"] * 2)
        assert ask(service, "other p256", "two").name == "ann"
        assert service._key_set is not None
        assert not service._key_set._wanted.is_set()  # once was enough
        with pytest.raises(Unauthorized):  # the old one has gone
            ask(service, "p256", "one")


@pytest.mark.gen_test
async def test_foreign_key_ids_fetch_no_more_than_once_a_pause() -> None:
    began = time.monotonic()
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        while len(issuer.requests) < 4:
            for number in range(20):
                with pytest.raises(Unauthorized):
                    ask(service, "p256", f"made up {number}")
            await asyncio.sleep(0.001)
            assert time.monotonic() - began < ANSWER_SECONDS
        assert time.monotonic() - began >= 3 * 0.1


@pytest.mark.gen_test
async def test_other_bad_tokens_fetch_nothing() -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        wanted = service._key_set
        assert wanted is not None
        for bad in ("nonsense", token("p256", "one")[:-4] + "AAAA", sign(payload())):
            with pytest.raises(Unauthorized):
                service.auth.authenticate(Credentials(f"Bearer {bad}"), time.time())
        assert not wanted._wanted.is_set()
        with pytest.raises(Unauthorized):
            ask(service, "p256", "two")
        assert wanted._wanted.is_set()


@pytest.mark.gen_test
async def test_it_is_fetched_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = KeySet.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "refresh_seconds", 0.2)
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)):
        await until(lambda: len(issuer.requests) >= 3)


BAD = {
    "an error": answer(b"no", "500 Internal Server Error"),
    "not found": answer(key_set(two="p256").split(b"\r\n\r\n")[1], "404 Not Found"),
    "a redirect": answer(b"", "302 Found", "Location: /keys"),
    "no JSON": answer(b"<html>"),
    "no UTF-8": answer(b"\xff\xfe"),
    "deep": answer(b"[" * 200_000),
    "no set": answer(b"[]"),
    "an empty set": answer(b'{"keys": []}'),
    "keys of another kind": answer(json.dumps({"keys": [jwk("ed25519", "EdDSA", kid="one")]}).encode()),
    "a secret": answer(b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}]}'),
    "too large": answer(b" " * MAX_SET_BYTES + key_set(two="p256").split(b"\r\n\r\n")[1]),
    "a bomb": answer(b"\x1f\x8b\x08\x00", "200 OK", "Content-Encoding: gzip"),
    "no HTTP": b"220 smtp.example.com ESMTP\r\n\r\n",
    "nothing": b"",
    "half": answer(b" " * 100)[:-50],
    "silence": None,
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.gen_test
async def test_what_is_of_no_use_leaves_the_old_set(
    expect_log: ExpectLog, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    expect_log("jwks.failed")
    good = key_set(one="p256")
    async with Issuer(good).listening() as issuer, serving(auth(issuer)) as service:
        issuer.answer = BAD[name]
        with pytest.raises(Unauthorized):
            ask(service, "p256", "two")
        await until(lambda: len(issuer.requests) >= 4)  # again and again
        assert events(caplog) == ["jwks.loaded", "jwks.failed"]
        assert ask(service, "p256", "one").name == "ann"
        issuer.answer = good
        await until(lambda: events(caplog) == ["jwks.loaded", "jwks.failed", "jwks.loaded"])
        assert ask(service, "p256", "one").name == "ann"


@pytest.mark.gen_test
async def test_an_issuer_that_is_away_at_the_start(expect_log: ExpectLog, caplog: pytest.LogCaptureFixture) -> None:
    expect_log("jwks.failed")
    issuer = Issuer(key_set(one="p256"))
    async with issuer.listening():
        pass  # for a port of its own
    async with serving(auth(issuer)) as service:
        with pytest.raises(Unavailable) as caught:
            ask(service, "p256", "one")
        assert (caught.value.code, caught.value.retry_after_seconds) == ("auth_unavailable", 5)
        await asyncio.sleep(0.3)  # a few more tries, without a line
        assert events(caplog) == ["jwks.failed"]
        async with issuer.listening():
            await until(lambda: events(caplog) == ["jwks.failed", "jwks.loaded"])
            assert ask(service, "p256", "one").name == "ann"


@pytest.mark.gen_test
async def test_a_reload_keeps_the_keys() -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        before, asked = service.auth, len(issuer.requests)
        service.reload_auth(auth(issuer, audience="here", leeway_seconds=5))
        assert service.auth is not before
        service.reload_auth(auth(issuer))
        assert ask(service, "p256", "one").name == "ann"  # at once
        assert len(issuer.requests) == asked
        with pytest.raises(Unauthorized):
            ask(service, "p256", "two")
        await until(lambda: len(issuer.requests) > asked)  # the new one asks, too


@pytest.mark.gen_test
async def test_a_reload_to_another_issuer(caplog: pytest.LogCaptureFixture) -> None:
    one, two = Issuer(key_set(one="p256")), Issuer(key_set(two="p256"))
    async with one.listening(), two.listening(), serving(auth(one)) as service:
        old = service._key_set
        service.reload_auth(auth(two))
        assert old is not None
        assert old._task is not None
        assert ask(service, "p256", "one").name == "ann"  # as before, until the new set has come
        with pytest.raises(Unauthorized):
            ask(service, "p256", "two")
        assert service.auth.awaits_keys
        await until(lambda: events(caplog) == ["jwks.loaded"] * 2 and not service.auth.awaits_keys)
        assert ask(service, "p256", "two").name == "ann"
        with pytest.raises(Unauthorized):
            ask(service, "p256", "one")
        assert old._task.cancelled()
        service.reload_auth(AuthSettings())
        assert service._key_set is None


@pytest.mark.gen_test
async def test_a_reload_to_an_issuer_that_is_away(expect_log: ExpectLog, caplog: pytest.LogCaptureFixture) -> None:
    """Its keys are tried for until they come. Until then tokens are verified as before, and all else is new at once."""
    expect_log("jwks.failed")
    one, two = Issuer(key_set(one="p256")), Issuer(None)
    async with one.listening(), two.listening(), serving(auth(one, audience="before")) as service:

        def name(kid: str, audience: str) -> str:
            claims = payload(exp=time.time() + 600, aud=audience)
            signed = sign(claims, private_key("p256"), "ES256", kid=kid)
            return service.auth.authenticate(Credentials(f"Bearer {signed}"), time.time()).name

        settings = auth(two, audience="after").model_copy(update={"private_topics": ("secret",)})
        service.reload_auth(settings)
        assert service.auth.settings.private_topics == ("secret",)
        await until(lambda: len(two.requests) >= 3)
        assert events(caplog) == ["jwks.loaded", "jwks.failed"]
        assert caplog.records[-1].__dict__["has_keys"]
        assert name("one", "before") == "ann"
        with pytest.raises(Unauthorized, match="does not contain 'before'"):
            name("one", "after")
        service.reload_auth(settings)  # once more, while it waits
        assert name("one", "before") == "ann"
        two.answer = key_set(two="p256")
        await until(lambda: events(caplog)[-1] == "jwks.loaded")
        assert name("two", "after") == "ann"
        with pytest.raises(Unauthorized):
            name("one", "before")


@pytest.mark.gen_test
async def test_a_reload_and_back_while_the_new_issuer_is_away(expect_log: ExpectLog) -> None:
    expect_log("jwks.failed", required=False)
    one, two = Issuer(key_set(one="p256")), Issuer(None)
    async with one.listening(), two.listening(), serving(auth(one)) as service:
        service.reload_auth(auth(two))
        service.reload_auth(auth(one))
        assert ask(service, "p256", "one").name == "ann"
        await until(lambda: not service.auth.awaits_keys)
        assert ask(service, "p256", "one").name == "ann"


@pytest.mark.gen_test
async def test_a_token_newer_than_the_set_is_no_bad_one_yet() -> None:
    """After a rotation the first token with the new key comes before the new set. A 401 would end its EventSource."""
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:

        def asked(kid: str, issued_at: object) -> Principal:
            claims = payload(exp=time.time() + 600, iat=issued_at)
            signed = sign(claims, private_key("p256"), "ES256", kid=kid)
            return service.auth.authenticate(Credentials(f"Bearer {signed}"), time.time())

        issued_at = time.time() + 5  # the clocks differ
        with pytest.raises(Unavailable) as caught:
            asked("two", issued_at)
        assert caught.value.code == "auth_unavailable"
        issuer.answer = key_set(two="p256")
        kept = service._key_set
        assert kept is not None
        await until(lambda: kept.document == json.loads(set_of(issuer)))
        assert asked("two", issued_at).name == "ann"
        # What cannot be newer than the set is a bad one.
        for old in (None, time.time() - 60, time.time() + 60, True, -1.0, 1e300):
            with pytest.raises(Unauthorized) as refused:
                asked("three", old)
            assert refused.value.code == "unknown_key_id"


@pytest.mark.gen_test
async def test_a_key_that_does_not_exist_is_found_out_by_the_next_set() -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer, leeway_seconds=0)) as service:
        claims = payload(exp=time.time() + 600, iat=time.time())
        signed = sign(claims, private_key("p256"), "ES256", kid="made up")

        def code() -> str:
            try:
                service.auth.authenticate(Credentials(f"Bearer {signed}"), time.time())
            except (Unauthorized, Unavailable) as error:
                return error.code
            raise AssertionError("it was let in")

        assert code() == "auth_unavailable"
        await until(lambda: code() == "unknown_key_id")
        assert len(issuer.requests) == 2


@pytest.mark.gen_test
async def test_a_reload_to_algorithms_that_no_key_fits_asks_at_once(
    expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("jwks.failed")
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        service.reload_auth(auth(issuer, algorithms=["EdDSA"]))
        await until(lambda: "jwks.failed" in events(caplog))
        issuer.answer = answer(json.dumps({"keys": [jwk("ed25519", "EdDSA", kid="one")]}).encode())
        await until(lambda: events(caplog)[-1] == "jwks.loaded")
        signed = sign(payload(exp=time.time() + 600), private_key("ed25519"), "EdDSA", kid="one")
        assert service.auth.authenticate(Credentials(f"Bearer {signed}"), time.time()).name == "ann"


@pytest.mark.gen_test
async def test_a_bad_reload_changes_nothing() -> None:
    async with Issuer(key_set(one="p256")).listening() as issuer, serving(auth(issuer)) as service:
        kept = service._key_set
        with pytest.raises(ConfigError):
            service.reload_auth(auth(issuer, jwks_file="/nonexistent"))
        assert service._key_set is kept
        assert ask(service, "p256", "one").name == "ann"


# Streams that are open.


def opened(service: Service, name: str, kid: str) -> Connection:
    """A stream that was opened with a token."""
    principal = ask(service, name, kid)
    subscription = Subscription(grants=frozenset(principal.subscribe), private_topics=service.private_topics)
    connection, _ = connect(service.hub, subscription)
    service.access.remember(connection, principal, None, service.cors)
    return connection


@pytest.mark.gen_test
async def test_streams_end_when_the_issuer_takes_their_key_back() -> None:
    async with Issuer(key_set(one="p256", two="other p256")).listening() as issuer, serving(auth(issuer)) as service:
        one, two = opened(service, "p256", "one"), opened(service, "other p256", "two")
        assert service._key_set is not None
        service._replace_jwks(service._key_set.document)
        assert len(service.hub.slices) == 0  # the same keys again: nobody is judged
        service._replace_jwks({"keys": [jwk("other p256", "ES256", kid="renamed")]})
        await until(lambda: not service.hub.slices)
        assert (one.reason, two.reason) == ("access_changed", None)


@pytest.mark.gen_test
async def test_streams_wait_for_the_keys_of_another_issuer() -> None:
    first, second = Issuer(key_set(one="p256", two="other p256")), Issuer(key_set(two="other p256"))
    async with first.listening(), second.listening(), serving(auth(first)) as service:
        one, two = opened(service, "p256", "one"), opened(service, "other p256", "two")
        service.reload_auth(auth(second))
        assert service.auth.awaits_keys
        await turns(1)
        assert (one.reason, two.reason) == (None, None)  # nobody can tell yet
        await until(lambda: one.reason == "access_changed")
        await until(lambda: not service.hub.slices)
        assert two.reason is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://issuer.example/keys", "expected https://"),
        ("http://127.0.0.1.example/keys", "expected https://"),
        ("http://10.0.0.1/keys", "expected https://"),
        (
            "https://user:hunter2@issuer.example/keys",
            "got a URL with a user and a password, expected a URL without them",
        ),
        ("http://127.0.0.1@issuer.example/keys", "got a URL with a user and a password"),
    ],
)
def test_a_url_that_anybody_on_the_way_could_answer(url: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JwtSettings.model_validate({"algorithms": ["ES256"], "jwks_url": url})
    assert said in caught.value.errors()[0]["msg"]
    assert "hunter2" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3:81", "[::1]:80", "localhost:8000"])
def test_loopback_needs_no_https(host: str) -> None:
    JwtSettings.model_validate({"algorithms": ["ES256"], "jwks_url": f"http://{host}/keys"})


# Over TLS, in an environment that says whom to trust.


@asynccontextmanager
async def over_tls(tmp_path: Path) -> AsyncIterator[tuple[Issuer, str]]:
    """An issuer, and the file of its certificate."""
    certfile, keyfile = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certfile, keyfile)
    async with Issuer(key_set(one="p256"), tls).listening() as issuer:
        yield issuer, str(certfile)


@pytest.mark.gen_test
async def test_what_the_environment_trusts_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with over_tls(tmp_path) as (issuer, certfile):
        # A log of keys that cannot be written, and proxies, which this fetch does not go through, are in nobody's way.
        set_environment(monkeypatch, SSL_CERT_FILE=certfile, SSLKEYLOGFILE="/gone/keys", https_proxy="nonsense://")
        async with serving(auth(issuer)) as service:
            assert ask(service, "p256", "one").name == "ann"
        assert events(caplog) == ["jwks.loaded"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"SSL_CERT_FILE": "/gone"}, "SSL_CERT_FILE: cannot read '/gone': No such file or directory"),
        ({"SSL_CERT_DIR": "/gone"}, "SSL_CERT_DIR: got '/gone', expected a directory of certificates"),
    ],
)
@pytest.mark.gen_test
async def test_an_issuer_that_is_not_trusted_is_said_with_the_variable(
    variables: dict[str, str], said: str, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expect_log("jwks.failed")
    expect_log("SSL", logger="tornado.general", required=False)
    async with over_tls(tmp_path) as (issuer, certfile):
        set_environment(monkeypatch, **variables)
        async with serving(auth(issuer)) as service:
            (failed,) = [record for record in caplog.records if record.getMessage() == "jwks.failed"]
            reason = failed.__dict__["reason"]
            assert "certificate verify failed" in reason
            assert reason.endswith(f" ({said})" if said else ")")
            assert said in reason
            # The task lives, and looks at the environment anew.
            monkeypatch.setenv("SSL_CERT_FILE", certfile)
            await until(lambda: "jwks.loaded" in events(caplog))
            assert ask(service, "p256", "one").name == "ann"


@pytest.mark.gen_test
async def test_a_server_uses_it(tmp_path: Path) -> None:
    def over_http(port: int) -> bytes:
        client = RawClient(port).get("/events", f"Authorization: Bearer {token('p256', 'one')}")
        try:
            return client.until(b"\r\n")
        finally:
            client.close()

    async with Issuer(key_set(one="p256")).listening() as issuer:

        def run() -> bytes:
            with ServerProcess(tmp_path, auth__jwt__algorithms=["ES256"], auth__jwt__jwks_url=issuer.url) as server:
                server.wait_for_log("jwks.loaded", keys=1)
                return over_http(server.port)

        assert await asyncio.to_thread(run) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.gen_test
async def test_a_reload_refuses_no_stream(tmp_path: Path) -> None:
    """The set of the new URL is on its way, and is never there: tokens are good as before, and the operator sees it."""

    def run(url: str, new_url: str) -> None:
        jwt = {"algorithms": ["ES256"]}
        reloadable = Reloadable(tmp_path, auth={"jwt": jwt | {"jwks_url": url}, "admin_keys": {"boss": "admin-key"}})
        server = reloadable.server
        reloadable.reload(auth={"jwt": jwt | {"jwks_url": new_url}, "admin_keys": {"boss": "admin-key"}})
        client = RawClient(server.port).get("/events", f"Authorization: Bearer {token('p256', 'one')}")
        client.until(b'"connected"')
        client.close()
        _, config = request(server, "GET", "/admin/config", headers={"Authorization": "Bearer admin-key"})
        assert b"(in effect once its key set has come)" in config
        server.stop(expect=("jwks.failed",))

    async with Issuer(key_set(one="p256")).listening() as issuer, Issuer(None).listening() as silent:
        await asyncio.to_thread(run, issuer.url, silent.url)
