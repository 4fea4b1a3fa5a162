"""Live events inside your own application: your handler accepts orders, and every subscriber sees them at once.

    .venv/bin/python docs/examples/embedding.py
    curl -N localhost:8888/live/events?topic=orders
    curl -d '{"item": "tea"}' localhost:8888/orders

Any handler or task on the same event loop may call `await hub.publish(...)`. On SIGTERM and Ctrl-C, the program ends
the streams over a second, and tells each client when to reconnect.
"""
# ruff: noqa: INP001, T201  # a program, not a part of a package, which says where it listens

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys

from tornado.web import Application, HTTPError, RequestHandler

from qgstream import CorsSettings, Hub, LimitSettings, Service, routes


class OrdersHandler(RequestHandler):
    """Your own endpoint, with your own rules. The endpoint publishes."""

    numbers = itertools.count(1)

    def initialize(self, hub: Hub) -> None:
        """Tornado passes the arguments of the URL table below."""
        self.hub = hub

    async def post(self) -> None:
        """Accept an order. Respond after the event is in the log, so that no client hears of an order that is lost."""
        try:
            item = json.loads(self.request.body)["item"]
        except (ValueError, KeyError, TypeError):
            raise HTTPError(400, 'expected {"item": "..."}') from None
        order = {"order": next(self.numbers), "item": item}
        receipt = await self.hub.publish("orders", order, event="created")
        self.write({**order, "id": receipt.id, "seen_by": receipt.subscribers})


async def main(port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    hub = Hub(limits=LimitSettings(max_connections=1000))
    service = Service(hub, cors=CorsSettings(allow_origins=("http://localhost:3000",)))
    async with service:
        app = Application(
            [
                ("/orders", OrdersHandler, {"hub": hub}),
                *routes(service, prefix="/live"),
            ]
        )
        server = app.listen(port, "localhost")
        print(f"streams: http://localhost:{port}/live/events, orders: http://localhost:{port}/orders; Ctrl-C ends it")
        leave = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, leave.set)
        await leave.wait()
        server.stop()
        await service.drain(1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 8888))
