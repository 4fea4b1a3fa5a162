"""`GET /metrics`: for Prometheus."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder

from qgstream.http.base import BaseHandler


class MetricsHandler(BaseHandler):
    """The Prometheus text format, or OpenMetrics for those who ask for it."""

    def get(self) -> None:
        """All instruments of this process."""
        try:
            encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # what it makes of `version=banana`
            encode, content_type = choose_encoder("")
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.write(encode(self.service.hub.metrics.registry))

    def head(self) -> None:
        """The same without its body."""
        self.get()
