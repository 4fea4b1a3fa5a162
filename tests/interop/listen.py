"""Opens a stream with every library, for every URL, and prints what each receives as lines of JSON.

python -m tests.interop.listen '{"cut": "http://...", ...}'; it runs until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import httpx_sse
import ld_eventsource  # type: ignore[import-untyped]
from aiohttp_sse_client2 import client as aiohttp_sse  # type: ignore[import-untyped]
from ld_eventsource.config import ErrorStrategy  # type: ignore[import-untyped]

import qgstream

Receive = Callable[[str, str, str], None]
_lock = threading.Lock()


def say(**record: object) -> None:
    with _lock:
        print(json.dumps(record), flush=True)


def with_httpx(url: str, received: Receive) -> None:
    with httpx.Client(timeout=60) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            received(event.event, event.data, event.id)


def with_launchdarkly(url: str, received: Receive) -> None:
    with ld_eventsource.SSEClient(url, error_strategy=ErrorStrategy.always_continue()) as source:
        for event in source.events:
            received(event.event, event.data, event.last_event_id or "")


async def with_aiohttp(url: str, received: Receive) -> None:
    async with aiohttp_sse.EventSource(url, reconnection_time=timedelta(seconds=0.2)) as source:
        async for event in source:
            received(event.type or "message", event.data, event.last_event_id)


async def with_ours(url: str, received: Receive) -> None:
    def told(state: qgstream.State) -> None:
        # What is no event here is one in the other clients.
        if state.name == "connected":
            received("message", json.dumps({"event": "connected", "replay": state.replay}), "")
        elif " " not in state.reason:
            word = "rejected" if state.reason == "max_connections" else "closing"
            received("message", json.dumps({"event": word, "reason": state.reason}), "")

    async for event in qgstream.connect(url, on_state=told, heartbeat_seconds=10):
        received(event.event, event.raw, event.id)


IN_THREADS = {"httpx-sse": with_httpx, "launchdarkly-eventsource": with_launchdarkly}
ON_THE_LOOP = {"aiohttp-sse-client2": with_aiohttp, "qgstream.connect": with_ours}


def reporter(client: str, scenario: str) -> Receive:
    def received(event: str, data: str, id: str) -> None:
        say(client=client, scenario=scenario, kind="event", event=event, data=data, id=id)

    return received


async def main(urls: dict[str, str]) -> None:
    async def listen(client: str, scenario: str, hear: Callable[..., Any]) -> None:
        url, received = f"{urls[scenario]}&client={quote(client, safe='')}", reporter(client, scenario)
        try:
            if client in ON_THE_LOOP:
                await hear(url, received)
            else:
                await asyncio.get_running_loop().run_in_executor(pool, hear, url, received)
            say(client=client, scenario=scenario, kind="stopped", why="its iteration ended")
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # whatever a library makes of it
            say(client=client, scenario=scenario, kind="stopped", why=f"{type(error).__name__}: {error}"[:300])

    pool = ThreadPoolExecutor(len(IN_THREADS) * len(urls))
    await asyncio.gather(
        *(listen(name, scenario, hear) for name, hear in (IN_THREADS | ON_THE_LOOP).items() for scenario in urls)
    )


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
