"""sse-starlette on uvicorn, as its README shows it: a queue for each stream, a generator that yields from it.

`uvicorn --app-dir benchmarks/rivals sse_starlette_app:app`
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

queues: dict[asyncio.Queue[str], None] = {}


async def subscribe(_request: Request) -> EventSourceResponse:
    """A stream."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def events() -> AsyncIterator[dict[str, str]]:
        queues[queue] = None
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            del queues[queue]

    return EventSourceResponse(events())


async def publish(request: Request) -> Response:
    """Put the body into every queue."""
    data = (await request.body()).decode()
    for queue in queues:
        queue.put_nowait(data)
    return Response()


app = Starlette(
    routes=[Route("/events", subscribe, methods=["GET"]), Route("/events", publish, methods=["POST"])],
)
