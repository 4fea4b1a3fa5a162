"""Those who watch a process: operators' streams of snapshots, beside the hub's own streams."""

from __future__ import annotations

import json
import time
from typing import cast

from tornado.iostream import IOStream

from qgstream.auth.authenticator import Authenticator, Principal
from qgstream.delivery.connection import Connection, Host, tune_socket
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
# A browser's tab each. Their sockets come out of the descriptors that are reserved beside the streams.
MAX_VIEWERS = 16
_RETRY_MS = 1000


class Viewers(Host):
    """Sends a snapshot every second to those who watch, and takes none while nobody does.

    The machinery is that of every stream (feeds, rounds, the bound on a backlog), with a feed and counts of its own:
    an operator must get in when the process is full or draining, and watching must not change what is watched. So
    these streams are in no list, limit or metric of the hub's, and stay until the server is gone.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._started_at = time.time()
        self._feeds = {
            framing: Feed[Subscriber](Subscription(framing=framing)) for framing in (Framing.CHUNKED, Framing.RAW)
        }
        self._fanout = Fanout(hub.slices, Metrics(), lambda: hub.limits, self._drop)
        self._viewers: dict[Connection, Principal] = {}
        self._timer = Timer(self._tick, EVERY_SECONDS)
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._viewers)

    def take(self) -> dict[str, object]:
        """A snapshot of now."""
        return snapshot(self._hub, started_at=self._started_at)

    def first(self) -> bytes:
        """How a viewer's stream begins (unframed). Raises `Unavailable` when there are too many."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise Unavailable(
                f"{len(self._viewers)} streams of snapshots are open, at most {MAX_VIEWERS} allowed",
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
        self._viewers[connection] = principal
        connection.join()
        if stream.writing():
            connection.park(connection.cursor, b"")
        if not self._timer.is_running():
            self._timer.start()
        return connection

    def close(self, reason: CloseReason) -> None:
        """End all of them at once, each with a goodbye if its socket takes it."""
        self._end(list(self._viewers), reason)

    def review(self, auth: Authenticator) -> None:
        """The keys were replaced: end those whose key is not among them."""
        gone = [connection for connection, principal in self._viewers.items() if not auth.still_accepts(principal)]
        self._end(gone, "access_changed")

    def _end(self, connections: list[Connection], reason: CloseReason) -> None:
        goodbye = messages.closing(time.time(), reason=reason, retry_ms=_RETRY_MS)
        for connection in connections:
            framing = connection.feed.subscription.framing
            connection.end(reason, framing.frame(goodbye) + framing.end(reason))
            connection.close(reason)

    def _tick(self) -> None:
        payload = self._encode()
        for feed in self._feeds.values():
            self._fanout.append(feed, feed.subscription.framing.wrap(payload))

    def _encode(self, *, retry_ms: int | None = None) -> bytes:
        return sse.encode(json.dumps(self.take()).encode(), retry_ms=retry_ms)

    def _drop(self, subscriber: Subscriber) -> None:
        cast(Connection, subscriber).close("slow_consumer")

    # What connections tell their host.

    def has_room(self, connection: Connection) -> None:
        """The socket takes bytes again."""
        self._fanout.has_room(connection)

    def leaving(self, connection: Connection) -> None:
        """Nothing: who says goodbye here is closed at once."""

    def closed(self, connection: Connection) -> None:
        """One has left; after the last the clock stops."""
        self._viewers.pop(connection, None)
        self._fanout.settle(connection.feed)
        if not self._viewers:
            self._timer.stop()
