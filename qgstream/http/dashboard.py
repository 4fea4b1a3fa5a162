"""`GET /admin`: the operator's page. It needs no key and knows nothing: it asks for one, and sends that along."""

from __future__ import annotations

from qgstream.http.page import PageHandler


class DashboardHandler(PageHandler):
    """The dashboard."""

    page = "dashboard.html"
