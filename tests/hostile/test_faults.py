"""What breaks around a server: clocks, names, certificates. It serves on, or says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.certificates import TlsClient, make_certificate
from tests.hostile.observing import Watch, ask, cpu_seconds, data_of, metrics
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until

# The clock.

LIBRARY = "faketime/libfaketime.so.1"


class Clock:
    """The wall clock of a server, to be stepped while it runs; its monotonic clock goes on as every machine's does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.step(0)

    def step(self, seconds: int) -> None:
        """To so many seconds from the true time."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self.path)

    @property
    def environment(self) -> dict[str, str]:
        (library,) = Path("/usr/lib").glob(f"*/{LIBRARY}")
        return {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.path), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip


@contextmanager
def environment(more: dict[str, str]) -> Iterator[None]:
    """For processes that are started within."""
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            del os.environ[name]


DAY = 86_400


@pytest.mark.parametrize("broker", ["memory", "sqlite"])
@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["forward", "back"])
def test_a_clock_that_is_stepped_a_day(
    tmp_path: Path, require_program: Callable[[str], Path], broker: str, seconds: int
) -> None:
    require_program("faketime")
    clock = Clock(tmp_path / "clock")
    url = "memory://" if broker == "memory" else f"sqlite://{tmp_path}/events.db"
    with environment(clock.environment):
        server = ServerProcess(
            tmp_path, broker__url=url, heartbeat__interval_seconds=0.2, limits__max_connection_age_seconds=3600
        )
    with server:
        watch = Watch(server)
        streams = [RawClient(server.port).get("/events?topic=a") for _ in range(3)]
        for stream in streams:
            stream.until(b'"connected"')
        ids = [publish(server, "a", f"before {number}")["id"] for number in range(3)]
        clock.step(seconds)
        ids += [publish(server, "a", f"after {number}")["id"] for number in range(3)]
        for stream in streams:
            stream.until(b"after 2")
            assert data_of(stream) == [f"{when} {number}" for when in ("before", "after") for number in range(3)]
            stream.received = b""
            for _ in range(3):  # heartbeats go on at their pace
                stream.until(b'"heartbeat"')
                stream.received = stream.received.partition(b'"heartbeat"')[2]
        offsets = [int(id.rpartition("-")[2]) for id in ids]
        assert offsets == sorted(set(offsets))
        # Who comes back gets what it missed, whatever the clock says of its age, or is told.
        late = RawClient(server.port).get("/events?topic=a", f"Last-Event-ID: {ids[3]}")
        late.until(b"after 2")
        assert data_of(late) == ["after 1", "after 2"]
        # The lines about the first stream and about the last, which came after the step.
        first, last = (server.wait_for_log("events.connected", count=count)["timestamp"] for count in (1, 4))
        assert (last > first) is (seconds > 0)
        assert watch.closed == {}
        clock.step(0)
        publish(server, "a", "and back")
        for stream in [*streams, late]:
            stream.until(b"and back")
            stream.close()
        watch.expect(client=4)


# Names.


def test_an_issuer_whose_name_does_not_resolve(tmp_path: Path) -> None:
    """RFC 6761: `.invalid` never does. Everything that needs no token goes on."""
    server = ServerProcess(
        tmp_path,
        auth__jwt__jwks_url="https://issuer.invalid/keys",
        auth__jwt__algorithms=["RS256"],
        heartbeat__interval_seconds=0.2,
    )
    try:
        line = server.wait_for_log("jwks.failed")
        assert (line["level"], line["has_keys"]) == ("warning", False)
        stream = RawClient(server.port).get("/events?topic=a")
        stream.until(b'"connected"')
        publish(server, "a", "with a key")
        stream.until(b"with a key")
        token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJhIn0." + "A" * 342
        for _ in range(20):
            answer, body = ask(server, "GET", "/events", headers={"Authorization": f"Bearer {token}"})
            assert answer.status in (401, 503), body
        stream.until(b'"heartbeat"')
        stream.close()
        used = cpu_seconds(server)
        wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
        assert cpu_seconds(server) - used < 1
        assert sum(line["event"] == "jwks.failed" for line in server.lines()) < 3
        server.stop(expect=("jwks.failed",))
    finally:
        if server.process.poll() is None:
            server.kill()


# Certificates.


def test_certificates_are_replaced_under_load(tmp_path: Path) -> None:
    """Also by half of one, which is refused; no handshake fails, and no stream notices."""
    certfile, keyfile = make_certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=certfile)
    server = ServerProcess(tmp_path, scheme="https", server__certfile=str(certfile), server__keyfile=str(keyfile))
    try:
        stream = TlsClient(server.port, trusted).get("/events?topic=a")
        stream.until(b'"connected"')
        done = threading.Event()
        handshakes: list[str] = []

        def shake_hands() -> None:
            anybody = ssl.create_default_context()
            anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
            while not done.is_set():
                answer, _ = ask(server, "GET", "/health", tls=anybody)
                handshakes.append(str(answer.status))

        workers = [threading.Thread(target=shake_hands) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            for number in range(1, 6):
                make_certificate(tmp_path)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log("config.reloaded", count=number)
                whole = certfile.read_bytes()
                certfile.write_bytes(whole[: len(whole) // 2])
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log("config.rejected", count=number)
                before = len(handshakes)
                wait_until(lambda before=before: len(handshakes) > before + 4, what="more handshakes")
                certfile.write_bytes(whole)
                current = ssl.create_default_context(cafile=certfile)
                body = json.dumps({"topic": "a", "data": f"with certificate {number}"}).encode()
                headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
                assert ask(server, "POST", "/events", body=body, headers=headers, tls=current)[0].status == 200
                stream.until(f"with certificate {number}".encode())
        finally:
            done.set()
            for worker in workers:
                worker.join()
        assert set(handshakes) == {"200"}
        stream.close()
        server.stop(expect=("config.rejected",))
    finally:
        if server.process.poll() is None:
            server.kill()
