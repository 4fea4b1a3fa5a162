"""Before: prices with sse-starlette. Every client has its own generator, task and queue in this process.

.venv/bin/uvicorn --app-dir docs/examples/recipes sse_starlette_before:app --port 8001
"""
# ruff: noqa: INP001  # a program, not a part of a package

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route


async def prices() -> AsyncIterator[dict[str, str]]:
    """Yield a price 20 times a second."""
    for number in range(1, 1_000_000):
        yield {"event": "price", "data": json.dumps({"number": number, "price": 100 + number % 7})}
        await asyncio.sleep(0.05)


async def events(_: Request) -> EventSourceResponse:
    """A stream of prices."""
    return EventSourceResponse(prices(), ping=15, headers={"Access-Control-Allow-Origin": "http://localhost:3000"})


app = Starlette(routes=[Route("/events", events)])
