"""Who waits for whom: a drain fits into what systemd, Docker's users and Kubernetes leave it, whatever is changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qgstream.limits import LimitSettings
from qgstream.process.capacity import resident_bytes
from qgstream.process.config import Config, load
from qgstream.process.server import STOP_SECONDS
from qgstream.service.drain import DrainSettings
from tests.deploy.programs import DEPLOY
from tests.deploy.test_kubernetes import CONTAINER, POD
from tests.deploy.units import SYSTEMD, read

PRODUCTION = load(DEPLOY.parent / "conf" / "production.toml").config
PODS = load(DEPLOY / "kubernetes" / "qgstream.toml").config
UNITS = sorted(SYSTEMD.glob("*.service"))
PROXIES = {"nginx": "nginx/qgstream.conf", "haproxy": "haproxy/haproxy.cfg", "caddy": "caddy/Caddyfile"}


def seconds_of(drain: DrainSettings) -> float:
    return drain.notice_seconds + drain.seconds + STOP_SECONDS


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@pytest.mark.parametrize("config", [Config(), PRODUCTION], ids=["defaults", "production.toml"])
def test_systemd_waits_for_the_drain(unit: Path, config: Config) -> None:
    (stop,) = read(unit)["TimeoutStopSec"]
    assert seconds_of(config.drain) <= int(stop)
    # And not so long that a process that hangs holds up a shutdown of the machine.
    assert int(stop) <= 2 * seconds_of(PRODUCTION.drain)


def test_kubernetes_waits_for_the_hook_and_the_drain() -> None:
    hook = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert hook + seconds_of(PODS.drain) <= POD["spec"]["terminationGracePeriodSeconds"]
    assert PODS.drain.notice_seconds == 0, "the hook waits already, and meanwhile streams are still taken"
    # Endpoints follow within a few probes of the one that waits longest.
    probe = CONTAINER["readinessProbe"]
    assert hook >= probe["periodSeconds"] * probe["failureThreshold"]


def test_a_drain_begins_at_once() -> None:
    """Our proxies ask the next process when one refuses the connection. A notice would only turn newcomers away."""
    assert PRODUCTION.drain.notice_seconds == PODS.drain.notice_seconds == Config().drain.notice_seconds == 0


def test_haproxy_notices_a_death_before_its_clients_come_back() -> None:
    text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
    found = re.search(r"inter (\d+)s fall (\d+)", text)
    assert found
    assert int(found[1]) * int(found[2]) < LimitSettings().retry_seconds


@pytest.mark.parametrize(
    ("path", "setting"),
    [("nginx/qgstream.conf", "worker_shutdown_timeout"), ("haproxy/haproxy.cfg", "hard-stop-after")],
)
@pytest.mark.parametrize("config", [PRODUCTION, PODS], ids=["production.toml", "pods"])
def test_streams_have_moved_on_before_a_reloaded_proxy_cuts_them(path: str, setting: str, config: Config) -> None:
    (hours,) = re.findall(rf"{setting} (\d+)h", (DEPLOY / path).read_text())
    longest = config.limits.max_connection_age_seconds * 1.2  # the jitter of heartbeat.py
    assert 0 < longest < int(hours) * 3600


def test_the_proxies_have_a_line_for_each_process_of_the_units() -> None:
    (start,) = read(SYSTEMD / "qgstream@.service")["ExecStart"]
    found = re.search(r"server\.port=(\d+)%i --set admin\.port=(\d+)%i", start)
    assert found
    ports = [(f"{found[1]}{instance}", f"{found[2]}{instance}") for instance in (1, 2)]
    text = {kind: (DEPLOY / path).read_text() for kind, path in PROXIES.items()}
    assert re.findall(r"^ +server 127\.0\.0\.1:(\d+) max_fails=0;$", text["nginx"], re.MULTILINE) == [
        p for p, _ in ports
    ]
    assert re.findall(r"^ +server \w+ 127\.0\.0\.1:(\d+) port (\d+)$", text["haproxy"], re.MULTILINE) == ports
    assert re.findall(r"reverse_proxy 127\.0\.0\.1:(\d+) 127\.0\.0\.1:(\d+)", text["caddy"]) == [
        tuple(p for p, _ in ports)
    ]


@pytest.mark.parametrize("path", ["nginx/qgstream.conf", "haproxy/haproxy.cfg", "caddy/Caddyfile"])
def test_heartbeats_come_often_enough_for_each_proxy(path: str) -> None:
    timeouts = re.findall(
        r"(?:read_timeout|timeout server|timeout client|timeout tunnel|send_timeout) (\d+)s",
        (DEPLOY / path).read_text(),
    )
    assert timeouts
    assert all(int(seconds) >= 3 * Config().heartbeat.interval_seconds for seconds in timeouts)


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("nginx/qgstream.conf", r"proxy_read_timeout (\d+)s;"),
        ("haproxy/haproxy.cfg", r"timeout (?:server|tunnel) (\d+)s"),
        ("caddy/Caddyfile", r"\sread_timeout (\d+)s"),
    ],
)
def test_heartbeats_that_stop_are_noticed_before_systemd_kills_the_process(path: str, pattern: str) -> None:
    """A process that hangs keeps its streams for so long."""
    timeouts = re.findall(pattern, (DEPLOY / path).read_text())
    assert timeouts
    (watchdog,) = read(SYSTEMD / "qgstream@.service")["WatchdogSec"]
    assert all(int(seconds) < int(watchdog) for seconds in timeouts)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_has_descriptors_for_the_limit(unit: Path) -> None:
    (descriptors,) = read(unit)["LimitNOFILE"]
    limit = PRODUCTION.limits.max_connections
    assert limit + limit // 10 + 164 <= int(descriptors)


def test_the_pod_has_memory_for_the_limit() -> None:
    # The arithmetic of docs/tuning-limits.md, with one stalled reader in ten.
    streams = PODS.limits.max_connections
    resident = resident_bytes(PODS) / 1024**2
    kernel = (streams * 7 + streams / 10 * 120) / 1024
    limit = CONTAINER["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert resident + kernel <= int(limit[:-2])


def test_the_body_that_nginx_takes_is_the_one_that_the_server_takes() -> None:
    text = (DEPLOY / "nginx" / "qgstream.conf").read_text()
    found = re.search(r"client_max_body_size (\d+)m;", text)
    assert found
    assert int(found[1]) * 1024**2 == LimitSettings().max_body_bytes


@pytest.mark.parametrize(
    ("path", "setting"), [("nginx/qgstream.conf", "keepalive_timeout"), ("caddy/Caddyfile", "keepalive")]
)
@pytest.mark.parametrize("config", [Config(), PRODUCTION, PODS], ids=["defaults", "production.toml", "pods"])
def test_each_proxy_closes_idle_connections_first(path: str, setting: str, config: Config) -> None:
    """Or it sends a request on one that the server is closing, and answers 502. HAProxy keeps none for so long."""
    (seconds,) = re.findall(rf"^\s*{setting} (\d+)s", (DEPLOY / path).read_text(), re.MULTILINE)
    assert int(seconds) + 10 <= config.server.keepalive_seconds
