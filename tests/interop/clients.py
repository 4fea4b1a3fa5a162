"""Clients that people use, each as an iterator of what it received."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import httpx_sse

from qgstream.wire.sse import Event, Parser

HERE = Path(__file__).parent
Reader = Callable[[str], AbstractContextManager[Iterator[Event]]]


@contextmanager
def with_httpx(url: str) -> Iterator[Iterator[Event]]:
    """httpx-sse."""
    with httpx.Client(timeout=60) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        yield (Event(each.data, each.event, each.id) for each in source.iter_sse())


@contextmanager
def with_curl(url: str, *options: str) -> Iterator[Iterator[Event]]:
    """`curl -N`, and the project's own parser behind it."""

    def events(out: subprocess.Popen[bytes]) -> Iterator[Event]:
        assert out.stdout is not None
        parser = Parser()
        while received := out.stdout.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader has it
            yield from parser.feed(received)

    with subprocess.Popen(["curl", "-sSN", *options, url], stdout=subprocess.PIPE) as curl:
        yield events(curl)
        curl.terminate()


@contextmanager
def with_npm(url: str, modules: Path) -> Iterator[Iterator[Event]]:
    """npm's eventsource, in Node."""

    def events(out: subprocess.Popen[bytes]) -> Iterator[Event]:
        assert out.stdout is not None
        for line in out.stdout:
            each = json.loads(line)
            yield Event(each["data"], each["type"], each["id"])

    with subprocess.Popen(["node", HERE / "client.mjs", modules, url], stdout=subprocess.PIPE) as node:
        yield events(node)
        assert node.wait(60) == 0
