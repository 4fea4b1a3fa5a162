"""Gauges of limits, certificates, key sets and lost lines: what a scrape shows is what holds."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from qgstream.auth.authenticator import AuthSettings
from qgstream.brokers.base import Broker, open_broker
from qgstream.events.history import HistorySettings
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.net.certificates import expires_at
from qgstream.net.sockets import max_sockets
from qgstream.service.service import Service
from qgstream.settings import Section
from tests.auth.test_jwks import Issuer, _quick, auth, key_set  # noqa: F401  # the fixture holds here, too
from tests.conftest import ExpectLog
from tests.hostile.certificates import make_certificate
from tests.http.asking import until
from tests.process.test_server import Reloadable
from tests.serving import ServerProcess

EXPIRY = "qgstream_certificate_expiry_timestamp_seconds"


def shown(registry: CollectorRegistry) -> dict[str, float]:
    """Each sample without labels."""
    return {
        sample.name: sample.value for family in registry.collect() for sample in family.samples if not sample.labels
    }


def scraped(port: int, scheme: str = "http") -> dict[tuple[str, str], float]:
    """Each sample of a server by its name and the value of its last label, if it has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"{scheme}://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=60, context=context if scheme == "https" else None) as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(reversed(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# Limits.


def numbers(section: str, settings: Section, **in_effect: float) -> dict[str, float]:
    values: Mapping[str, object] = settings.model_dump() | in_effect
    return {
        f"qgstream_{section}_{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def expected(limits: LimitSettings, history: HistorySettings) -> dict[str, float]:
    return numbers("limits", limits, max_sockets=max_sockets(limits)) | numbers("history", history)


def test_every_number_of_the_limits_and_of_the_history_is_shown() -> None:
    limits, history = LimitSettings(max_connections=7, connect_rate_per_ip=0.5), HistorySettings(max_events=3)
    values = shown(Hub(limits=limits, history=history).metrics.registry)
    wanted = expected(limits, history)
    assert wanted.items() <= values.items()
    assert values["qgstream_limits_max_sockets"] == 107  # that of 0, as nothing is 0 here
    assert {name for name in values if name.startswith(("qgstream_limits_", "qgstream_history_max_"))} == wanted.keys()


def test_a_change_shows_at_once() -> None:
    service = Service(Hub())
    service.tune({"max_connections": 9, "max_backlog_bytes": 8192})
    values = shown(service.hub.metrics.registry)
    assert (values["qgstream_limits_max_connections"], values["qgstream_limits_max_backlog_bytes"]) == (9, 8192)
    assert values["qgstream_connections_limit"] == 9
    limits, history = LimitSettings(max_sockets=50), HistorySettings(max_age_seconds=8.5)
    service.hub.reload(limits=limits, history=history)
    assert expected(limits, history).items() <= shown(service.hub.metrics.registry).items()


def test_a_reload_of_a_server_shows(tmp_path: Path) -> None:
    running = Reloadable(tmp_path)
    with running.server as server:
        assert scraped(server.port)["qgstream_limits_connect_burst_per_ip", ""] == 20
        running.reload(limits={"connect_burst_per_ip": 6}, history={"max_bytes": 4096})
        values = scraped(server.port)
        assert values["qgstream_limits_connect_burst_per_ip", ""] == 6
        assert values["qgstream_history_max_bytes", ""] == 4096


# Certificates.


def date_of(certfile: Path) -> float:
    return x509.load_pem_x509_certificate(certfile.read_bytes()).not_valid_after_utc.timestamp()


def test_a_chain_is_valid_until_its_first_certificate_expires(tmp_path: Path) -> None:
    leaf, key = make_certificate(tmp_path, name="leaf", days=90)
    issuer, _ = make_certificate(tmp_path, name="issuer", days=20)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(key.read_bytes() + leaf.read_bytes() + issuer.read_bytes())
    assert expires_at(leaf) == date_of(leaf)
    assert expires_at(chain) == date_of(issuer) < date_of(leaf)


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_date_that_cannot_be_read_stops_nobody(tmp_path: Path, text: str, expect_log: ExpectLog) -> None:
    expect_log("certificate.unreadable")
    (tmp_path / "a.pem").write_text(text)
    assert expires_at(tmp_path / "a.pem") is None


def test_a_server_without_a_certificate_has_no_date(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        assert not [key for key in scraped(server.port) if key[0] == EXPIRY]


def test_the_date_is_that_of_the_certificate_that_clients_are_shown(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path, days=30)
    (folder := tmp_path / "new").mkdir()
    new_certfile, new_keyfile = make_certificate(folder, days=60)
    server = ServerProcess(tmp_path, scheme="https", server__certfile=str(certfile), server__keyfile=str(keyfile))
    try:
        before = date_of(certfile)
        assert scraped(server.port, "https")[EXPIRY, "server"] == before
        # Half of a pair is refused: the old certificate stays in use.
        certfile.write_bytes(new_certfile.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.rejected")
        assert scraped(server.port, "https")[EXPIRY, "server"] == before
        keyfile.write_bytes(new_keyfile.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.reloaded")
        assert scraped(server.port, "https")[EXPIRY, "server"] == date_of(new_certfile) != before
    finally:
        server.stop(expect=("config.rejected",))


def test_another_certificate_waits_for_a_restart(tmp_path: Path) -> None:
    """Its date would be that of a certificate that nobody is shown yet."""
    certfile, keyfile = make_certificate(tmp_path, name="localhost", days=30)
    new_certfile, new_keyfile = make_certificate(tmp_path, name="other", days=60)
    running = Reloadable(tmp_path, server={"certfile": str(certfile), "keyfile": str(keyfile)})
    with running.server as server:
        running.reload(server={"certfile": str(new_certfile), "keyfile": str(new_keyfile)})
        assert scraped(server.port, "https")[EXPIRY, "server"] == date_of(certfile)


@pytest.mark.parametrize("scheme", ["nats+tls", "amqps"])
def test_the_certificate_that_the_engine_is_shown(tmp_path: Path, scheme: str) -> None:
    certfile, keyfile = make_certificate(tmp_path, days=30)
    broker = open_broker(f"{scheme}://127.0.0.1:1?certfile={certfile}&keyfile={keyfile}")
    samples = {
        (sample.name, sample.labels["certificate"]): sample.value
        for family in Hub(broker=broker).metrics.registry.collect()
        for sample in family.samples
        if sample.name == EXPIRY
    }
    assert samples == {(EXPIRY, "broker"): date_of(certfile)}


@pytest.mark.parametrize("url", ["memory://", "nats+tls://127.0.0.1:1", "amqps://127.0.0.1:1", "rediss://127.0.0.1:1"])
def test_an_engine_that_is_shown_none(url: str) -> None:
    broker: Broker = open_broker(url)
    assert broker.certificate_expires_at is None


# Key sets.


@pytest.mark.gen_test
async def test_the_issuers_keys_and_when_they_came(expect_log: ExpectLog) -> None:
    expect_log("jwks.failed")
    began = time.time()
    issuer = Issuer(key_set(one="p256", two="other p256"))
    async with Service(Hub(), auth=AuthSettings()) as service:
        values = shown(service.hub.metrics.registry)
        assert not [name for name in values if "jwks" in name]
    async with issuer.listening(), Service(Hub(), auth=auth(issuer)) as service:
        registry = service.hub.metrics.registry
        first = shown(registry)["qgstream_jwks_last_success_timestamp_seconds"]
        assert began <= first <= time.time()
        assert shown(registry)["qgstream_jwks_keys"] == 2
        assert service._key_set is not None
        # A failure leaves both as they are, and the same set once more is a success.
        good, issuer.answer = issuer.answer, b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
        service._key_set.refresh()
        await until(lambda: len(issuer.requests) >= 3)
        assert shown(registry)["qgstream_jwks_last_success_timestamp_seconds"] == first
        assert shown(registry)["qgstream_jwks_keys"] == 2
        issuer.answer = good
        await until(lambda: shown(registry)["qgstream_jwks_last_success_timestamp_seconds"] > first)
        service.reload_auth(AuthSettings())
        assert not [name for name in shown(registry) if "jwks" in name]


@pytest.mark.gen_test
async def test_keys_that_never_came(expect_log: ExpectLog) -> None:
    expect_log("jwks.failed")
    issuer = Issuer(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
    async with issuer.listening(), Service(Hub(), auth=auth(issuer)) as service:
        values = shown(service.hub.metrics.registry)
        assert values["qgstream_jwks_last_success_timestamp_seconds"] == values["qgstream_jwks_keys"] == 0


# The log.


def test_lost_lines_are_counted(tmp_path: Path) -> None:
    """The disk of the log is full: the metric is where that can be seen."""
    with ServerProcess(tmp_path) as server:
        samples = scraped(server.port)
        for reason in ("disk_full", "reader_gone", "reader_slow", "failed"):
            assert samples["qgstream_log_lines_lost_total", reason] == 0
    wanted = 'qgstream_log_lines_lost_total{reason="disk_full"} 7.0'
    script = (
        "import os, sys\n"
        "from prometheus_client import generate_latest\n"
        "from qgstream.hub import Hub\n"
        "from qgstream.logs import LogSettings, configure, log\n"
        "configure(LogSettings())\n"
        "for _ in range(7): log.info('a line')\n"
        "sys.stdout.buffer.write(generate_latest(Hub().metrics.registry))\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=full, timeout=60, check=True
        )
    assert wanted in done.stdout.decode().splitlines()
