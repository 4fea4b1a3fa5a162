"""After: the same prices as a source of qgstream. One generator for all clients, and the rest is configuration.

PYTHONPATH=docs/examples/recipes .venv/bin/qgstream serve --config docs/examples/recipes/sse_starlette_after.toml
"""
# ruff: noqa: INP001  # a module that the configuration names

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


async def prices() -> AsyncIterator[dict[str, object]]:
    """Yield a price 20 times a second."""
    for number in range(1, 1_000_000):
        yield {"topic": "prices", "event": "price", "data": {"number": number, "price": 100 + number % 7}}
        await asyncio.sleep(0.05)
