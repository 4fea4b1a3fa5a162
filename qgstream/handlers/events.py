"""`GET /events`: up to the first byte of the stream; then it is the hub's."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Awaitable

from qgstream import messages, sse
from qgstream.addresses import client_key
from qgstream.auth import Principal
from qgstream.errors import InvalidField, TooManyRequests, Unauthorized, Unavailable
from qgstream.framing import Framing
from qgstream.handlers.base import BaseHandler
from qgstream.limits import Rejection
from qgstream.logs import scrub
from qgstream.publication import Position
from qgstream.subscription import Subscription
from qgstream.topics import check_pattern, check_text

_LAST_EVENT_ID_PARAMETERS = ("last_event_id", "lastEventId", "lastEventID")
_MAX_USER_AGENT = 200


class EventsHandler(BaseHandler):
    """Opens a stream. Its life as a handler ends with the headers: it detaches, and is freed."""

    @property
    def allowed_methods(self) -> str:
        """POST has a handler of its own on the same path."""
        return "GET, HEAD, POST, OPTIONS"

    def head(self) -> None:
        """The headers alone, at once."""
        self._subscription(self.authenticate())
        self._set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and there is none
        self.finish()

    def get(self) -> Awaitable[None] | None:
        """The stream."""
        ip = self.remote_ip
        client = client_key(ip)
        try:
            principal = self.authenticate()
        except Unauthorized:
            # A real 401: an EventSource that was told 200 would come back with the same token for ever.
            self.service.rejected("unauthorized", client)
            raise
        subscription, last_event_id = self._subscription(principal), self._last_event_id()
        if last_event_id and self.service.hub.is_outside_window(subscription, last_event_id):
            return self._look_up(principal, subscription, last_event_id)
        self._begin(principal, subscription, last_event_id)
        return None

    async def _look_up(self, principal: Principal, subscription: Subscription, last_event_id: str) -> None:
        try:
            older = await self.service.hub.look_up(subscription, last_event_id)
        except Unavailable as error:
            # It cannot be known now what this client has missed. Later it can: it keeps its id and comes back.
            self.service.rejected("broker_down", client_key(self.remote_ip))
            self._reject(Rejection("broker_down", str(error), False))
        else:
            self._begin(principal, subscription, last_event_id, older)

    def _begin(
        self, principal: Principal, subscription: Subscription, last_event_id: str | None, older: Position | None = None
    ) -> None:
        ip = self.remote_ip
        client = client_key(ip)
        rejection = self.service.admit(client)
        if rejection is not None:
            self._reject(rejection)
            return
        hub = self.service.hub
        opening = hub.open(subscription, last_event_id, latest=self._wants_latest(), older=older)
        self._set_stream_headers()
        self.write(b"".join([message.as_sse() for message in opening.first]))
        self.flush()
        stream = self.detach()
        # What `finish` does in Tornado and `detach` does not: `ui` holds a cycle that keeps this handler and 37 other
        # objects until the collector comes, a seventh of a handshake and 1.3 KiB a stream (benchmarks/collector.py).
        self.ui = None  # type: ignore[assignment]
        # The client may have gone by now, or this may be the second of two pipelined requests: then there would be no
        # close callback any more, and the slot would leak.
        if stream.closed():
            return
        user_agent = sys.intern(scrub(self.request.headers.get("User-Agent", ""))[:_MAX_USER_AGENT])
        connection = hub.adopt(stream, subscription, opening, ip=ip, client_key=client, user_agent=user_agent)
        if principal.expires_at is not None:
            self.service.wheel.end_at(connection, principal.expires_at, "token_expired")

    def _set_stream_headers(self) -> None:
        if self.request.version == "HTTP/1.0":
            # Tornado would promise `Connection: Keep-Alive` to who asked for it, and this body ends by closing.
            self.request.headers["Connection"] = "close"
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        # no-transform: a proxy that compresses also buffers. Never `Connection: keep-alive`: Safari drops an HTTP/2
        # stream for it; Tornado would echo it to an HTTP/1.0 client that asks.
        self.request.headers.pop("Connection", None)
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # In an application that compresses, the start would be compressed and what comes after it would not.
            self.set_header("Content-Encoding", "identity")

    # What is asked for.

    def _subscription(self, principal: Principal) -> Subscription:
        limits, private = self.service.limits, self.service.private_patterns
        framing = Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW
        if not self.request.query:  # by far the most common, so nothing is parsed for it
            principal.require_subscribe(("*",), private)
            return Subscription(framing=framing, grants=frozenset(principal.subscribe), private_patterns=private)
        topics = self._values("topic")
        if len(topics) > limits.max_topics_per_connection:
            raise InvalidField("topic", f"got {len(topics)}, expected at most {limits.max_topics_per_connection}")
        patterns = frozenset(check_pattern(topic) for topic in topics)
        principal.require_subscribe(patterns or ("*",), private)
        events = self._values("event")
        if len(events) > limits.max_topics_per_connection:
            raise InvalidField("event", f"got {len(events)}, expected at most {limits.max_topics_per_connection}")
        return Subscription(
            patterns=frozenset() if "*" in patterns else patterns,
            events=frozenset(check_text("event", event) for event in events),
            envelope=self._flag("envelope"),
            framing=framing,
            grants=frozenset(principal.subscribe),
            private_patterns=private,
        )

    def _wants_latest(self) -> bool:
        value = self.get_query_argument("replay", "")
        if value not in ("", "latest"):
            raise InvalidField("replay", f"got {value[:50]!r}, expected 'latest'")
        return value == "latest"

    def _values(self, name: str) -> list[str]:
        # Not get_query_arguments: it turns control characters into spaces, and the topic into another one.
        return [self.decode_argument(value, name) for value in self.request.query_arguments.get(name, ())]

    def _flag(self, name: str) -> bool:
        value = self.get_query_argument(name, "0")
        if value not in ("0", "1", "true", "false"):
            raise InvalidField(name, f"got {value[:50]!r}, expected 1 or 0")
        return value in ("1", "true")

    def _last_event_id(self) -> str | None:
        header = self.request.headers.get("Last-Event-ID")
        if header:
            # Headers arrive decoded as latin-1; a browser sends UTF-8.
            return header.encode("latin-1").decode("utf-8", "replace")
        for name in _LAST_EVENT_ID_PARAMETERS if self.request.query else ():
            # Not get_query_argument: it refuses what is not UTF-8, and no id is answered with an error.
            values = self.request.query_arguments.get(name)
            if values and values[-1]:
                return values[-1].decode("utf-8", "replace")
        return None

    # One too many.

    def _reject(self, rejection: Rejection) -> None:
        # The socket goes too: kept alive it would still cost a descriptor, which is what there is too little of.
        self.close_after_answer = True
        retry_after = self.service.retry_after_seconds(rejection.wait_seconds)
        wants_stream = "text/event-stream" in self.request.headers.get("Accept", "").lower()
        if not wants_stream or self.service.limits.overload_response == "error":
            if rejection.per_client:
                raise TooManyRequests(rejection.message, retry_after_seconds=retry_after, code=rejection.reason)
            raise Unavailable(rejection.message, retry_after_seconds=retry_after, code=rejection.reason)
        # The standard makes an EventSource stop for good on any status but 200; `retry:` and the end it obeys.
        self._set_stream_headers()
        self.set_header("Connection", "close")
        message = messages.rejected(time.time(), reason=rejection.reason, retry_ms=math.ceil(retry_after * 1000))
        self.finish(message.as_sse())
