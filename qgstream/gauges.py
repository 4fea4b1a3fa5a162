"""Gauges beside the counters of streams: limits in effect, dates of certificates, the issuer's keys, lost log lines,
the clock.

All of them are read at the scrape. A certificate and a key set that do not exist have no series: there is no date that
would be true of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qgstream import logs
from qgstream.events.history import HistorySettings
from qgstream.limits import LimitSettings
from qgstream.net.sockets import max_sockets
from qgstream.settings import Section

# What this process shows a certificate to: clients, as a server, and the engine of the broker, as its client.
Certificate = Literal["server", "broker"]
CERTIFICATES: tuple[Certificate, ...] = get_args(Certificate)


@dataclass(frozen=True, slots=True)
class KeySetState:
    """When the last good answer of `auth.jwt.jwks_url` was asked for (Unix seconds; 0: there was none), and how many
    keys tokens are verified with."""

    last_success_at: float
    keys: int


class Gauges(Collector):
    """Reads what the `watch_` methods were given. A metric has its name in each scrape, with or without a series."""

    def __init__(self) -> None:
        self._limits: Callable[[], LimitSettings] = LimitSettings
        self._history: Callable[[], HistorySettings] = HistorySettings
        self._certificates: dict[Certificate, Callable[[], float | None]] = {}
        self._key_set: Callable[[], KeySetState | None] = lambda: None

    def watch_limits(self, limits: Callable[[], LimitSettings], history: Callable[[], HistorySettings]) -> None:
        """Show these settings; each call returns those in effect."""
        self._limits, self._history = limits, history

    def watch_certificate(self, certificate: Certificate, expires_at: Callable[[], float | None]) -> None:
        """Show until when a certificate is valid (Unix seconds), or nothing while `expires_at()` is None."""
        self._certificates[certificate] = expires_at

    def watch_key_set(self, state: Callable[[], KeySetState | None]) -> None:
        """Show how fresh the issuer's keys are, or nothing while `state()` is None."""
        self._key_set = state

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        limits = self._limits()
        in_effect = {"max_sockets": max_sockets(limits)}  # of 0 follows a number of its own
        yield from _settings("limits", limits, in_effect)
        yield from _settings("history", self._history(), {})
        expiry = GaugeMetricFamily(
            "qgstream_certificate_expiry_timestamp_seconds",
            "Until when the certificate that is in use is valid, the earliest date of its chain.",
            labels=("certificate",),
        )
        for certificate in CERTIFICATES:
            date = self._certificates.get(certificate, lambda: None)()
            if date is not None:
                expiry.add_metric((certificate,), date)
        yield expiry
        yield from self._keys()
        text = "Lines of the log that could not be written, by reason."
        lost = CounterMetricFamily("qgstream_log_lines_lost", text, labels=("reason",))
        for reason, count in logs.lost_lines().items():
            lost.add_metric((reason,), float(count))
        yield lost
        # As `node_time_seconds` of the node exporter, and compared in the same way: with `timestamp()` of the sample.
        yield GaugeMetricFamily("qgstream_time_seconds", "The clock of this process.", value=time.time())

    def _keys(self) -> Iterator[Metric]:
        state = self._key_set()
        for name, text, value in (
            (
                "jwks_last_success_timestamp_seconds",
                "When the last good answer of auth.jwt.jwks_url was asked for; 0 before the first.",
                0.0 if state is None else state.last_success_at,
            ),
            ("jwks_keys", "Keys that tokens are verified with.", 0.0 if state is None else float(state.keys)),
        ):
            family = GaugeMetricFamily(f"qgstream_{name}", text, labels=())
            if state is not None:
                family.add_metric((), value)
            yield family


def _settings(section: str, settings: Section, in_effect: Mapping[str, float]) -> Iterator[Metric]:
    """A gauge for each number of a section, by the name that it has there: its unit and its meaning are known."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = f"{section}.{name} in effect."
            yield GaugeMetricFamily(f"qgstream_{section}_{name}", text, value=float(in_effect.get(name, value)))
