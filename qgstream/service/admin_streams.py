"""Admin streams: snapshots of the process for operators, apart from the hub's own streams."""

from __future__ import annotations

import json
import time
from typing import cast

from tornado.iostream import IOStream

from qgstream.auth.authenticator import Authenticator, Principal
from qgstream.delivery.connection import Connection, ConnectionOwner, tune_socket
from qgstream.delivery.fanout import Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.subscriber import Subscriber
from qgstream.errors import Unavailable
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.metrics import Metrics
from qgstream.net.timer import Timer
from qgstream.reasons import CloseReason
from qgstream.service.status import snapshot
from qgstream.wire import messages, sse
from qgstream.wire.framing import Framing

EVERY_SECONDS = 1.0
# One for each browser tab. Their sockets use the descriptors that are reserved in addition to those of the streams.
MAX_ADMIN_STREAMS = 16
_RETRY_MS = 1000


class AdminStreams(ConnectionOwner):
    """Sends a snapshot every second to each admin stream, and takes no snapshots while there is none.

    Admin streams use the same machinery as all streams (feeds, rounds, the backlog limit), with their own feeds and
    counts. An operator must get in when the process is full or draining, and admin streams must not change the numbers
    that they show. So admin streams are in no list, limit or metric of the hub, and stay open until the server stops.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._started_at = time.time()
        self._feeds = {
            framing: Feed[Subscriber](Subscription(framing=framing)) for framing in (Framing.CHUNKED, Framing.RAW)
        }
        self._fanout = Fanout(hub.slices, Metrics(), lambda: hub.limits, self._drop)
        self._connections: dict[Connection, Principal] = {}
        self._timer = Timer(self._tick, EVERY_SECONDS)
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._connections)

    def take(self) -> dict[str, object]:
        """Take a snapshot of the current state."""
        return snapshot(self._hub, started_at=self._started_at)

    def first(self) -> bytes:
        """Return the first bytes of an admin stream (unframed). Raises `Unavailable` when too many are open."""
        if len(self._connections) >= MAX_ADMIN_STREAMS:
            raise Unavailable(
                f"got {len(self._connections)} open admin streams, expected at most {MAX_ADMIN_STREAMS}",
                retry_after_seconds=10,
                code="too_many_viewers",
            )
        return self._encode(retry_ms=_RETRY_MS)

    def adopt(self, stream: IOStream, framing: Framing, principal: Principal, *, ip: str) -> Connection:
        """Take over a detached stream of `principal`, whose headers and first bytes are written."""
        tune_socket(stream, self._hub.limits)
        self._last_id += 1
        connection = Connection(
            self, stream, self._feeds[framing], id=self._last_id, ip=ip, client_key=ip, user_agent="",
            opened_at=time.time(),
        )  # fmt: skip
        self._connections[connection] = principal
        connection.join()
        if stream.writing():
            connection.park(connection.cursor, b"")
        if not self._timer.is_running():
            self._timer.start()
        return connection

    def close(self, reason: CloseReason) -> None:
        """End all admin streams at once; each gets a closing message if its socket takes the bytes."""
        self._end(list(self._connections), reason)

    def review(self, auth: Authenticator) -> None:
        """End the admin streams whose key is not among the new keys. Call this after the keys were replaced."""
        gone = [connection for connection, principal in self._connections.items() if not auth.still_accepts(principal)]
        self._end(gone, "access_changed")

    def _end(self, connections: list[Connection], reason: CloseReason) -> None:
        closing = messages.closing(time.time(), reason=reason, retry_ms=_RETRY_MS)
        for connection in connections:
            framing = connection.feed.subscription.framing
            connection.end(reason, framing.frame(closing) + framing.end(reason))
            connection.close(reason)

    def _tick(self) -> None:
        payload = self._encode()
        for feed in self._feeds.values():
            self._fanout.append(feed, feed.subscription.framing.wrap(payload))

    def _encode(self, *, retry_ms: int | None = None) -> bytes:
        return sse.encode(json.dumps(self.take()).encode(), retry_ms=retry_ms)

    def _drop(self, subscriber: Subscriber) -> None:
        cast(Connection, subscriber).close("slow_consumer")

    # The calls that a connection makes to its host.

    def has_room(self, connection: Connection) -> None:
        """The socket takes bytes again."""
        self._fanout.has_room(connection)

    def leaving(self, connection: Connection) -> None:
        """Do nothing: an admin stream is closed in the same call that sends its closing message."""

    def closed(self, connection: Connection) -> None:
        """An admin stream has ended; after the last one, the timer stops."""
        self._connections.pop(connection, None)
        self._fanout.settle(connection.feed)
        if not self._connections:
            self._timer.stop()
