"""`GET /ws`: the same streams over a WebSocket. Tornado does the handshake. Then the hub takes the stream over."""

from __future__ import annotations

import binascii
from typing import Any

from tornado.websocket import WebSocketHandler

from qgstream.errors import InvalidField, UpgradeRequired
from qgstream.http.streams import StreamHandler, Wanted
from qgstream.limits import Rejection
from qgstream.net import cors
from qgstream.wire.framing import Framing

SUBPROTOCOL = "qgstream.v1"


class WebSocketEventsHandler(WebSocketHandler, StreamHandler):
    """Opens a stream on a WebSocket. The handler is freed after the handshake.

    A bad request is refused before the handshake, with JSON as elsewhere. Tornado would check again and respond in
    plain text.
    """

    def head(self, *_path: str) -> None:
        """Refuse HEAD: there is no stream without a handshake."""
        self._check_handshake()
        raise UpgradeRequired("got HEAD, expected GET")

    async def get(self) -> None:
        """Do the handshake."""
        self._check_handshake()
        admitted = await self.admitted(Framing.WEBSOCKET)
        if isinstance(admitted, Rejection):
            # No response makes a browser's WebSocket stop for good, so this error can say what is wrong.
            raise self.refusal(admitted)
        self._admitted = admitted
        await super().get()

    def wanted(self, framing: Framing) -> Wanted | Rejection:
        """See `StreamHandler`; the page's origin is checked first."""
        self._check_page()
        return super().wanted(framing)

    def open(self) -> None:
        """The 101 is written: take the stream over before Tornado begins to read it."""
        protocol = self.ws_connection
        if protocol is None or protocol.stream is None:
            return
        stream, protocol.stream = protocol.stream, None
        # Its loop ends before it has begun, and so frees the handler, the request and the protocol: 4 KiB a stream
        # instead of 13.
        protocol.client_terminated = True
        self.ws_connection = None
        if stream.closed():
            return
        start = self.decide_start(self._admitted)
        stream.write(b"".join([Framing.WEBSOCKET.frame(message) for message in start.first]))
        self.adopt(stream, self._admitted.wanted, start)

    # The handshake.

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Select this server's subprotocol if it is offered: a browser disconnects if it has offered some and none is
        selected."""
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    @property
    def ping_interval(self) -> float | None:
        """Return None, also in an application that has set `websocket_ping_interval`: the heartbeats replace pings."""
        return None

    def _check_handshake(self) -> None:
        headers = self.request.headers
        if self.request.version == "HTTP/1.0":
            raise UpgradeRequired("got HTTP/1.0, expected HTTP/1.1")
        for name, expected in (("Upgrade", "websocket"), ("Connection", "upgrade")):
            got = headers.get(name, "")
            if expected not in [word.strip().lower() for word in got.split(",")]:
                raise UpgradeRequired(f"{name}: got {got[:50]!r}, expected {expected!r} (a WebSocket's handshake)")
        version = headers.get("Sec-WebSocket-Version", "")
        if version != "13":
            raise UpgradeRequired(f"Sec-WebSocket-Version: got {version[:50]!r}, expected '13'")
        key = headers.get("Sec-WebSocket-Key", "")
        try:
            is_key = len(binascii.a2b_base64(key, strict_mode=True)) == 16
        except ValueError:
            is_key = False
        if not is_key:
            raise InvalidField("Sec-WebSocket-Key", f"got {key[:50]!r}, expected 16 bytes in base64")

    def _check_page(self) -> None:
        # Browsers let any page open a WebSocket to any server and read it. WebSockets have no CORS, so this check
        # replaces it.
        origin = self.request.headers.get("Origin")
        if origin is None:
            if self.request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
                return  # not a browser
            origin = ""
        if not self.check_origin(origin):
            raise self.foreign_origin(origin)

    def check_origin(self, origin: str) -> bool:
        """Return whether pages of this origin may open a stream."""
        return self.is_own_origin(origin) or cors.is_allowed(self.service.cors, origin)

    @property
    def takes_cookie(self) -> bool:
        """Return whether a cookie may authenticate: for a page of another origin, only if CORS allows it to use the
        cookie."""
        origin = self.request.headers.get("Origin")
        return origin is None or self.is_own_origin(origin) or self.service.cors.allow_credentials

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """See `BaseHandler`."""
        super().write_error(status_code, **kwargs)
        if self.get_status() == UpgradeRequired.status:
            self.set_header("Upgrade", "websocket")  # RFC 9110, 15.5.22
            self.set_header("Sec-WebSocket-Version", "13")  # RFC 6455, 4.4
