"""`GET /`: the demo page. One file, no CDN."""

from __future__ import annotations

from collections.abc import Mapping

from qgstream.http.page import LinkedPageHandler

# The publish key of conf/dev.toml. It is no secret, so the page may have it in its form where it is one.
_DEV_KEY = "dev"


class DemoHandler(LinkedPageHandler):
    """Shows live events, the connection state, and a publish form."""

    page = "demo.html"
    # The page connects to its own server, or with ?api= to a server on the reader's machine. If any host were allowed,
    # a crafted link could send the publish key that a reader types to a stranger.
    connect = ("'self'", "http://localhost:*", "http://127.0.0.1:*")

    def facts(self) -> Mapping[str, str]:
        """`publishers`: `dev` where that is a publish key, `none` where nobody can publish, otherwise `some`."""
        auth = self.service.auth
        publishers = "dev" if auth.is_publish_key(_DEV_KEY) else "some" if auth.takes_publishers else "none"
        return {**super().facts(), "publishers": publishers}
