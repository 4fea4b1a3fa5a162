"""The events of a stream on standard output, for people or for programs."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from datetime import datetime

from qgstream.cli import _streams
from qgstream.client.envelope import ReceivedEvent
from qgstream.client.stream import Reset, State, Stream
from qgstream.terminal import colours


class ForPrograms:
    """The envelope, one on each line."""

    def event(self, event: ReceivedEvent) -> None:
        topic = event.topic if len(event.topics) == 1 else list(event.topics)
        head = json.dumps({"id": event.id, "topic": topic, "event": event.event})
        # In JSON text, line ends occur only between tokens, and a server sends none.
        print(f'{head[:-1]}, "data": {event.raw}}}', flush=True)

    def reset(self, reset: Reset) -> None:
        print(json.dumps({"event": "reset", "reason": reset.reason, "id": reset.id}), flush=True)


class ForPeople:
    """Time, id, topics, type and data."""

    def __init__(self) -> None:
        self._dim, self._bold, self._red, _, self._plain = colours(sys.stdout)

    def event(self, event: ReceivedEvent) -> None:
        dim, bold, plain = self._dim, self._bold, self._plain
        data = event.raw
        if data.startswith('"'):
            data = event.data.replace("\r\n", "\n")
        if "\n" in data:
            data = "\n" + data
        shown = "\n    ".join(map(_printable, data.split("\n")))
        topics, kind = _printable(", ".join(event.topics)), _printable(event.event)
        at = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005  # the local time
        print(f"{dim}{at} {_printable(event.id)}{plain} {bold}{topics}{plain} {kind} {shown}", flush=True)

    def reset(self, reset: Reset) -> None:
        print(f"{self._red}events were missed: {_printable(reset.reason)}{self._plain}", flush=True)


def _printable(text: str) -> str:
    """Return the text without control characters: a publisher's text must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def say_state(server: str, state: State) -> None:
    """Print why no events arrive at the moment; on a terminal, also that the stream is connected again."""
    if state.name == "waiting":
        _streams.say(f"{server}: {_printable(state.reason)}; again in {state.seconds:.1f} s")
    elif sys.stderr.isatty():
        _streams.say(f"connected to {server}, replay: {_printable(state.replay)}")


async def tail(stream: Stream, show: ForPrograms | ForPeople, count: int | None) -> None:
    """Show `count` events, or all events. Raises BrokenPipeError when the output has no reader any more."""
    showing = asyncio.ensure_future(_show(stream, show, count))
    try:
        await asyncio.wait({showing, _reader_of_stdout()}, return_when=asyncio.FIRST_COMPLETED)
        if not showing.done():
            raise BrokenPipeError
        showing.result()
    finally:
        showing.cancel()
        await asyncio.wait({showing})


async def _show(stream: Stream, show: ForPrograms | ForPeople, count: int | None) -> None:
    async with stream:
        async for event in stream:
            show.event(event)
            if count is not None:
                count -= 1
                if not count:
                    return


def _reader_of_stdout() -> asyncio.Future[None]:
    """Return a future that is done when the reader of the output has closed it: `qgstream tail | head -1` ends with its
    head, without waiting for the next event."""
    loop = asyncio.get_running_loop()
    has_left: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        loop.remove_reader(descriptor)
        has_left.set_result(None)

    try:
        descriptor = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            # This end of a pipe cannot be read, but epoll still reports that the other end was closed.
            loop.add_reader(descriptor, tell)
    except (OSError, ValueError):
        pass  # no descriptor, or one that cannot be watched: the next write will fail
    return has_left
