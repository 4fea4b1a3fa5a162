"""A FastAPI application that publishes its orders. Every subscriber sees them at once; qgstream holds the streams.

    .venv/bin/uvicorn --app-dir docs/examples/recipes fastapi_app:app --port 8001
    curl -H 'Content-Type: application/json' -d '{"item": "tea"}' localhost:8001/orders

Starlette works the same way: it has the same `lifespan` and `request.app.state`.
"""
# ruff: noqa: INP001  # a program, not a part of a package

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel

from qgstream import AsyncPublisher

URL, KEY = os.environ.get("EVENTS_URL", "http://localhost:8000"), os.environ.get("EVENTS_KEY", "dev")


class Order(BaseModel):
    """The body of an order."""

    item: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one publisher for the life of the application, because a publisher keeps its connections."""
    async with AsyncPublisher(URL, key=KEY) as publisher:
        app.state.publisher = publisher
        yield


app = FastAPI(lifespan=lifespan)
numbers = itertools.count(1)


@app.post("/orders")
async def create_order(order: Order, request: Request) -> dict[str, object]:
    """Accept an order. Respond after the event is in the log, so that no client hears of an order that is lost."""
    created = {"order": next(numbers), "item": order.item}
    published = await request.app.state.publisher.publish("orders", created, event="created")
    return {**created, "id": published.id}
