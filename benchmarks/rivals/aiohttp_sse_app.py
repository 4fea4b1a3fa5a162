"""aiohttp-sse, as its README shows it: a queue for each stream.

`python benchmarks/rivals/aiohttp_sse_app.py` prints its port and serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource

from aiohttp import web
from aiohttp_sse import sse_response

queues: dict[asyncio.Queue[str], None] = {}


async def subscribe(request: web.Request) -> web.StreamResponse:
    """A stream."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    async with sse_response(request) as response:
        queues[queue] = None
        try:
            while response.is_connected():
                await response.send(await queue.get())
        finally:
            del queues[queue]
    return response


async def publish(request: web.Request) -> web.Response:
    """Put the body into every queue."""
    data = await request.text()
    for queue in queues:
        queue.put_nowait(data)
    return web.Response()


async def main() -> None:
    """Serve on a free port."""
    app = web.Application()
    app.add_routes([web.get("/events", subscribe), web.post("/events", publish)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main())
