"""Gauges computed at the scrape: limits in effect, certificate dates, the issuer's keys, lost log lines, the clock.

A missing certificate or key set has no series, because no date would be true.
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

# The peers to which this process shows a certificate: clients of the server, and the broker's engine.
Certificate = Literal["server", "broker"]
CERTIFICATES: tuple[Certificate, ...] = get_args(Certificate)


@dataclass(frozen=True, slots=True)
class KeySetState:
    """The state of the issuer's keys.

    `last_success_at` is the start of the last successful fetch of `auth.jwt.jwks_url` (Unix seconds; 0 before the
    first). `keys` is the number of keys that verify tokens.
    """

    last_success_at: float
    keys: int


class Gauges(Collector):
    """Collects the values given to the `watch_` methods. The names of all metrics are in each scrape, with or without
    series."""

    def __init__(self) -> None:
        self._limits: Callable[[], LimitSettings] = LimitSettings
        self._history: Callable[[], HistorySettings] = HistorySettings
        self._certificates: dict[Certificate, Callable[[], float | None]] = {}
        self._key_set: Callable[[], KeySetState | None] = lambda: None

    def watch_limits(self, limits: Callable[[], LimitSettings], history: Callable[[], HistorySettings]) -> None:
        """Show these settings; each function returns the settings in effect."""
        self._limits, self._history = limits, history

    def watch_certificate(self, certificate: Certificate, expires_at: Callable[[], float | None]) -> None:
        """Show when a certificate expires (Unix seconds). There is no series while `expires_at()` is None."""
        self._certificates[certificate] = expires_at

    def watch_key_set(self, state: Callable[[], KeySetState | None]) -> None:
        """Show the age of the issuer's keys. There is no series while `state()` is None."""
        self._key_set = state

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        limits = self._limits()
        in_effect = {"max_sockets": max_sockets(limits)}  # the value for max_sockets = 0
        yield from _settings("limits", limits, in_effect)
        yield from _settings("history", self._history(), {})
        expiry = GaugeMetricFamily(
            "qgstream_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires: the earliest date of its chain.",
            labels=("certificate",),
        )
        for certificate in CERTIFICATES:
            date = self._certificates.get(certificate, lambda: None)()
            if date is not None:
                expiry.add_metric((certificate,), date)
        yield expiry
        yield from self._keys()
        text = "Log lines that could not be written, by reason."
        lost = CounterMetricFamily("qgstream_log_lines_lost", text, labels=("reason",))
        for reason, count in logs.lost_lines().items():
            lost.add_metric((reason,), float(count))
        yield lost
        # Like `node_time_seconds` of the node exporter. Alerts compare the value with `timestamp()` of the sample.
        yield GaugeMetricFamily("qgstream_time_seconds", "The clock of this process.", value=time.time())

    def _keys(self) -> Iterator[Metric]:
        state = self._key_set()
        for name, text, value in (
            (
                "jwks_last_success_timestamp_seconds",
                "When the last successful fetch of auth.jwt.jwks_url began; 0 before the first.",
                0.0 if state is None else state.last_success_at,
            ),
            ("jwks_keys", "Keys that verify tokens.", 0.0 if state is None else float(state.keys)),
        ):
            family = GaugeMetricFamily(f"qgstream_{name}", text, labels=())
            if state is not None:
                family.add_metric((), value)
            yield family


def _settings(section: str, settings: Section, in_effect: Mapping[str, float]) -> Iterator[Metric]:
    """Yield a gauge for each number of a section, named after the setting, whose unit and meaning are documented."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = f"{section}.{name} in effect."
            yield GaugeMetricFamily(f"qgstream_{section}_{name}", text, value=float(in_effect.get(name, value)))
