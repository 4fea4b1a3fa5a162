"""`GET /admin`: the dashboard for operators. The page itself needs no key and contains no data: it asks for a key and
sends it with its requests."""

from __future__ import annotations

from qgstream.http.page import LinkedPageHandler


class DashboardHandler(LinkedPageHandler):
    """The dashboard."""

    page = "dashboard.html"
