"""Before: an endpoint of a FastAPI application with heartbeats, a limit and a way to broadcast.

.venv/bin/uvicorn --app-dir docs/examples/recipes fastapi_before:app --port 8001
"""
# ruff: noqa: INP001  # a program, not a part of a package

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse

MAX_CONNECTIONS = int(os.environ.get("MAX_CONNECTIONS", "100"))
HEARTBEAT_SECONDS = float(os.environ.get("HEARTBEAT_SECONDS", "5"))

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=["http://localhost:3000"], allow_methods=["*"], allow_headers=["*"])
clients: set[asyncio.Queue[str]] = set()


def message(**fields: Any) -> str:
    """A message of the stream."""
    return f"data: {json.dumps(fields)}\n\n"


def own(event: str) -> str:
    """One of the server's own messages."""
    return message(event=event, timestamp=datetime.now(UTC).isoformat())


async def generate(request: Request, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    """Yield the messages for one client."""
    try:
        yield own("connected")
        while not await request.is_disconnected():
            try:
                yield await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield own("heartbeat")
    finally:
        clients.discard(queue)


@app.get("/events")
async def events(request: Request) -> StreamingResponse:
    """Open a stream."""
    if len(clients) >= MAX_CONNECTIONS:
        raise HTTPException(503, "too many connections")
    queue: asyncio.Queue[str] = asyncio.Queue()
    clients.add(queue)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(generate(request, queue), media_type="text/event-stream", headers=headers)


@app.post("/broadcast")
async def broadcast(data: dict[str, Any]) -> dict[str, int]:
    """Send an event to every connected client."""
    for queue in clients:
        queue.put_nowait(message(**data))
    return {"clients": len(clients)}
