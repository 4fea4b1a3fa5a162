"""A plain Tornado server, as most programs begin. `python -m qgstream.bench.plain` prints its port and serves.

Each stream has a handler that stays in its `get`, and a publish calls `write` and `flush` on each of them. Nothing is
tuned, as in most tutorials; `/headers` opens a stream that sends nothing else.
"""

from __future__ import annotations

import asyncio
import resource

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


class HeadersHandler(RequestHandler):
    """A stream that only sends its headers."""

    async def get(self) -> None:
        """Send the headers, and wait until the client disconnects."""
        self.left = asyncio.Event()
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache, no-transform")
        await self.flush()
        await self.left.wait()

    def on_connection_close(self) -> None:
        """The client has disconnected."""
        if hasattr(self, "left"):
            self.left.set()


class EventsHandler(HeadersHandler):
    """A stream that receives the published events."""

    open_streams: dict[EventsHandler, None] = {}  # noqa: RUF012  # one server a process

    async def get(self) -> None:
        """Open the stream, and wait until the client disconnects."""
        self.open_streams[self] = None
        try:
            await super().get()
        finally:
            self.open_streams.pop(self, None)

    def post(self) -> None:
        """Send the body to every stream."""
        for handler in list(self.open_streams):
            handler.write(b"data: %b\n\n" % self.request.body)
            handler.flush()  # not awaited: one stalled reader would block the publisher


async def _serve() -> None:
    sockets = bind_sockets(0, "127.0.0.1", backlog=1024)
    server = HTTPServer(Application([("/events", EventsHandler), ("/headers", HeadersHandler)], log_function=_silent))
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)  # noqa: T201  # the parent process reads this line
    await asyncio.Event().wait()


def _silent(_handler: RequestHandler) -> None:
    """Log nothing."""


def main() -> None:
    """Serve until killed."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
