"""`GET /`: the demo page. One file, no CDN."""

from __future__ import annotations

from collections.abc import Mapping

from qgstream.http.page import LinkedPageHandler

# The publish key of conf/dev.toml. It is no secret, so the page may have it in its form where it is one.
_DEV_KEY = "dev"


class DemoHandler(LinkedPageHandler):
    """Live events, connection state, a publish form."""

    page = "demo.html"
    # Its own server, or with ?api= one on the reader's own machine. Any host would let a crafted link send the publish
    # key that somebody types there to a stranger.
    connect = ("'self'", "http://localhost:*", "http://127.0.0.1:*")

    def facts(self) -> Mapping[str, str]:
        """`publishers`: `dev` where that is a publish key, `none` where nobody can publish, otherwise `some`."""
        auth = self.service.auth
        publishers = "dev" if auth.is_publish_key(_DEV_KEY) else "some" if auth.takes_publishers else "none"
        return {**super().facts(), "publishers": publishers}
