"""The error of a measurement."""

from __future__ import annotations

from qgstream.errors import QgstreamError


class BenchError(QgstreamError):
    """A measurement that is not possible, or that would measure something other than requested."""

    code = "bench_failed"
