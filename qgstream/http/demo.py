"""`GET /`: the demo page. One file, no CDN."""

from __future__ import annotations

from qgstream.http.page import PageHandler


class DemoHandler(PageHandler):
    """Live events, connection state, a publish form."""

    page = "demo.html"
    # Its own server, or with ?api= one on the reader's own machine. Any host would let a crafted link send the publish
    # key that somebody types there to a stranger.
    connect = ("'self'", "http://localhost:*", "http://127.0.0.1:*")
