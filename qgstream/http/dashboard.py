"""`GET /admin`: the operator's page. It needs no key and knows nothing: it asks for one, and sends that along."""

from __future__ import annotations

from qgstream.http.page import LinkedPageHandler


class DashboardHandler(LinkedPageHandler):
    """The dashboard."""

    page = "dashboard.html"
