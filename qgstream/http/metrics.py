"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder

from qgstream.http.base import BaseHandler


class MetricsHandler(BaseHandler):
    """Serves the Prometheus text format, or OpenMetrics if the client accepts that."""

    def get(self) -> None:
        """Send all metrics of this process."""
        try:
            encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # for instance for `version=banana`
            encode, content_type = choose_encoder("")
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.write(encode(self.service.hub.metrics.registry))
