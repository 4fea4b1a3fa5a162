"""qgstream inside somebody's own Tornado application: the example of the documentation, and what it stands on."""

from __future__ import annotations

import http.client
import importlib
import json
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop
from tornado.web import Application, RequestHandler

import qgstream
from qgstream import (
    AuthSettings,
    Hub,
    InvalidField,
    LimitSettings,
    Metrics,
    Service,
    StreamServer,
    TooLarge,
    operator_routes,
    routes,
)
from tests.conftest import ExpectLog
from tests.deploy.programs import free_port
from tests.documents import ROOT, blocks_of
from tests.http.asking import BEARER, KEY, Client, error_of
from tests.serving import RawClient, wait_until

PAGE = ROOT / "docs" / "embedding.md"
EXAMPLE = ROOT / "docs" / "examples" / "embedding.py"


# The example.


@pytest.fixture
def example() -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-u", EXAMPLE, str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: is_open(port), what="the example to listen")
            yield process, port
        finally:
            process.kill()


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def order(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/orders", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_the_example_does_what_it_says(example: tuple[subprocess.Popen[str], int], sign: signal.Signals) -> None:
    process, port = example
    assert process.stdout is not None
    assert f"http://localhost:{port}/live/events" in process.stdout.readline()
    clients = [RawClient(port).get("/live/events?topic=orders", "Origin: http://localhost:3000") for _ in range(2)]
    for client in clients:
        client.until(b'"connected"')
        assert b"Access-Control-Allow-Origin: http://localhost:3000\r\n" in client.received
    status, body = order(port, b'{"item": "tea"}')
    taken = json.loads(body)
    assert (status, taken["order"], taken["item"], taken["seen_by"]) == (200, 1, "tea", 2)
    for client in clients:
        client.until(f'id: {taken["id"]}\nevent: created\ndata: {{"order":1,"item":"tea"}}\n\n'.encode())
    assert order(port, b"nonsense")[0] == 400
    # Its other endpoints are its own: no publishing over HTTP without keys.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/live/events", b'{"topic": "orders", "data": 1}', {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (403, "no_publish_keys")
    connection.close()
    process.send_signal(sign)
    for client in clients:
        assert client.to_end().endswith(b'"reason": "drain"}\n\n\r\n0\r\n\r\n')
        client.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said
    assert "Error" not in said


def test_the_commands_of_the_page_are_answered(example: tuple[subprocess.Popen[str], int]) -> None:
    """Those of docs/embedding.md, in as many terminals."""
    _, port = example
    shown = [block for block in blocks_of(PAGE) if block.note == "run by tests/test_embedding.py"]
    start, listen, buy = [block.text.replace("8888", str(port)) for block in shown]
    assert start == f".venv/bin/python {EXAMPLE.relative_to(ROOT)}"
    with subprocess.Popen(shlex.split(listen), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as curl:
        assert curl.stdout is not None
        try:
            while '"connected"' not in curl.stdout.readline():
                pass
            subprocess.run(shlex.split(buy), check=True, capture_output=True, timeout=60)
            while "tea" not in curl.stdout.readline():
                pass
        finally:
            curl.kill()


# The names.


def test_importing_it_costs_nothing() -> None:
    code = "import qgstream, sys; qgstream.__version__; dir(qgstream); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"tornado", "pydantic", "prometheus_client", "jwt", "msgspec"}.isdisjoint(done.stdout.split())
    assert {name for name in done.stdout.split() if name.startswith("qgstream")} == {"qgstream", "qgstream.version"}


@pytest.mark.parametrize("name", [name for name in qgstream.__all__ if name != "__version__"])
def test_each_name_is_that_of_its_module(name: str) -> None:
    home = importlib.import_module(f"qgstream.{qgstream._HOMES[name]}")
    assert getattr(qgstream, name) is getattr(home, name)
    assert name in dir(qgstream)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'qgstream' has no attribute 'Hubb'"):
        qgstream.Hubb  # noqa: B018
    with pytest.raises(ImportError):
        from qgstream import Hubb  # noqa: F401


def test_everything_at_once() -> None:
    code = "from qgstream import *; print(Hub, Service, routes, __version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "qgstream.hub.Hub" in done.stdout


# In an application with its own ways, on the test's own loop.


class OwnHandler(RequestHandler):
    def initialize(self, hub: Hub) -> None:
        self.hub = hub

    async def get(self) -> None:
        receipt = await self.hub.publish("orders", {"n": 1}, event="created")
        self.write(f"{receipt.id} {receipt.subscribers}")


class TestInAnApplication:
    @pytest.fixture
    def service(self, io_loop: IOLoop) -> Iterator[Service]:
        service = Service(
            Hub(limits=LimitSettings(max_connections=2)),
            auth=AuthSettings.model_validate({"publish_keys": [KEY], "admin_keys": {"boss": "admin-key"}}),
            trusted_proxies=["127.0.0.1", "10.0.0.0/8"],
        )
        io_loop.run_sync(service.start)
        yield service
        io_loop.run_sync(service.stop)

    @pytest.fixture
    def app(self, service: Service) -> Application:
        return Application(
            [("/own", OwnHandler, {"hub": service.hub}), *routes(service), *operator_routes(service)],
            xsrf_cookies=True,
            compress_response=True,
            cookie_secret="secret",
        )

    @pytest.fixture
    def client(self, http_client: AsyncHTTPClient, base_url: str, service: Service) -> Client:
        return Client(http_client, base_url, service)

    @pytest.mark.gen_test
    async def test_its_own_handlers_publish(self, client: Client) -> None:
        stream = await client.stream("orders")
        answer = await client.ask("GET", "/own")
        event = await stream.next()
        assert (event.event, event.data) == ("created", '{"n":1}')
        assert answer.body.decode() == f"{event.id} 1"
        stream.close()

    @pytest.mark.gen_test
    async def test_a_stream_is_not_compressed(self, client: Client) -> None:
        stream = await client.stream("a", headers={"Accept-Encoding": "gzip"})
        assert b"gzip" not in stream.head
        await client.publish("a", "x")
        assert await stream.data() == "x"
        stream.close()

    @pytest.mark.gen_test
    async def test_an_admin_stream_is_not_compressed(self, client: Client) -> None:
        iostream = await client.connect()
        lines = (
            "GET /admin/events HTTP/1.1",
            "Host: tests",
            "Authorization: Bearer admin-key",
            "Accept-Encoding: gzip",
        )
        await iostream.write("\r\n".join([*lines, "", ""]).encode())
        head = await iostream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"gzip" not in head
        await iostream.read_until(b"data: {")
        iostream.close()

    @pytest.mark.gen_test
    async def test_a_refusal_is_not_compressed_either(self, client: Client) -> None:
        streams = [await client.stream(), await client.stream()]
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
        answer = await client.ask("GET", "/events", headers=headers)
        assert b'"rejected"' in answer.body
        for stream in streams:
            stream.close()

    @pytest.mark.gen_test
    async def test_programs_publish_without_a_cookie_of_the_application(self, client: Client) -> None:
        assert (await client.post({"topic": "a", "data": 1}, headers=BEARER)).code == 200

    @pytest.mark.gen_test
    async def test_the_rest_is_the_applications(self, client: Client, expect_log: ExpectLog) -> None:
        expect_log("404 GET /nowhere", logger="tornado.access")
        assert (await client.ask("GET", "/nowhere")).headers["Content-Type"].startswith("text/html")
        assert (await client.ask("GET", "/health")).code == 200

    @pytest.mark.gen_test
    async def test_proxies_may_be_given_as_text(self, client: Client) -> None:
        stream = await client.stream(headers={"X-Forwarded-For": "192.0.2.7, 10.1.1.1"})
        assert next(iter(client.hub.registry)).ip == "192.0.2.7"
        stream.close()

    @pytest.mark.gen_test
    async def test_a_drain_refuses_and_ends(self, client: Client, expect_log: ExpectLog) -> None:
        expect_log("503 GET /events", logger="tornado.access")  # the application's way to log; ours is quieter
        stream = await client.stream()
        await client.service.drain(0.05)
        assert await stream.message()
        assert len(client.hub.registry) == 0
        answer = await client.ask("GET", "/events")
        assert (answer.code, error_of(answer)["code"]) == (503, "draining")
        stream.close()


# A hub in a program.


@pytest.mark.gen_test
async def test_a_hub_publishes_without_anybody_listening() -> None:
    async with Service(Hub()) as service:
        hub = service.hub
        first = await hub.publish("a", {"n": 1})
        second = await hub.publish(["a", "b"], "text", event="e", retry_ms=100, private=True, idempotency_key="k")
        assert first.id != second.id
        assert (first.subscribers, second.subscribers) == (0, 0)
        assert (await hub.publish("a", "text", idempotency_key="k")).id == second.id


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("topic", "data", "fields", "error", "said"),
    [
        ("a\n", 1, {}, InvalidField, "topic: got U+000A"),
        ("", 1, {}, InvalidField, "topic: got an empty string"),
        ([], 1, {}, InvalidField, "topic: got 0 names"),
        (7, 1, {}, InvalidField, "topic: got int"),
        ("a", object(), {}, InvalidField, "data: got object"),
        ("a", "\ud800", {}, InvalidField, "data: got the lone surrogate"),
        ("a", {"x": "\ud800"}, {}, InvalidField, "data: got dict"),
        ("a", float("nan"), {}, None, ""),
        ("a", "x" * 300_000, {}, TooLarge, "data: got 300000 bytes, expected at most 262144"),
        ("a", 1, {"event": "e\r"}, InvalidField, "event: got U+000D"),
        ("a", 1, {"retry_ms": -1}, InvalidField, "retry: got -1"),
        ("a", 1, {"idempotency_key": ""}, InvalidField, "idempotency_key: got an empty string"),
    ],
)
async def test_what_could_never_be_sent_is_an_error_where_it_is_made(
    topic: str, data: object, fields: dict[str, str], error: type[Exception] | None, said: str
) -> None:
    async with Service(Hub()) as service:
        if error is None:
            await service.hub.publish(topic, data, **fields)  # type: ignore[arg-type]  # as a program might
            return
        with pytest.raises(error) as caught:
            await service.hub.publish(topic, data, **fields)  # type: ignore[arg-type]  # as a program might
        assert str(caught.value).startswith(said)
        assert len(service.hub.window) == 0


@pytest.mark.gen_test
async def test_a_hub_that_was_not_started_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"await hub\.start\(\) first"):
        await Hub().publish("a", 1)


@pytest.mark.gen_test
async def test_hubs_do_not_share_anything() -> None:
    async with Service(Hub()) as one, Service(Hub()) as other:
        await one.hub.publish("a", 1)
        assert (len(one.hub.window), len(other.hub.window)) == (1, 0)
        assert one.hub.metrics.registry is not other.hub.metrics.registry
        assert one.hub.window.epoch != other.hub.window.epoch


@pytest.mark.gen_test
async def test_metrics_on_a_registry_of_the_program() -> None:
    from prometheus_client import CollectorRegistry, Counter

    registry = CollectorRegistry()
    Counter("mine", "My own.", registry=registry).inc()
    async with Service(Hub(metrics=Metrics(registry))) as service:
        await service.hub.publish("a", 1)
    assert registry.get_sample_value("mine_total") == 1
    assert registry.get_sample_value("qgstream_events_published_total") == 1


def test_the_server_for_many_streams_is_one_of_tornados() -> None:
    from tornado.httpserver import HTTPServer

    assert issubclass(StreamServer, HTTPServer)
