"""What stops a measurement."""

from __future__ import annotations

from qgstream.errors import QgstreamError


class BenchError(QgstreamError):
    """A measurement that cannot be made, or that would measure something else than was asked for."""

    code = "bench_failed"
