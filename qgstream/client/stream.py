"""`connect`: the events of a stream that reconnects, resumes at its last position, and reports missed events."""

from __future__ import annotations

import asyncio
import inspect
import math
import ssl
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Literal, Self

import httpx

from qgstream.client import transport
from qgstream.client.envelope import OwnMessage, ReceivedEvent, opened
from qgstream.client.responses import (
    ClientError,
    TryLater,
    Unreachable,
    bearer,
    events_url,
    is_hopeless,
    refusal,
    sentence,
    server_of,
)
from qgstream.wire import sse

# Until the server has sent `retry:`. The server's own default is 3 s, and browsers start with about the same.
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
# Bounds for the time that a server may ask for, by `retry:` or Retry-After. A shorter time would be a loop without a
# pause (Firefox has the same bound). A longer time is a mistake, or makes the client useless.
MIN_ASKED_SECONDS = 0.5
MAX_ASKED_SECONDS = 300.0
CONNECT_SECONDS = 10.0
# The server is dead when it has sent nothing for this many heartbeats, even if the TCP connection is still open.
MISSED_HEARTBEATS = 3


@dataclass(frozen=True, slots=True)
class Reset:
    """The client has missed events, and the server cannot replay them.

    Attributes:
        reason: Why: `too_old`, `unknown_id` or `epoch_changed`.
        id: The position behind the gap; empty with `replay="latest"`, when the newest values follow.

    Example::

        import qgstream

        def on_reset(reset: qgstream.Reset) -> None:
            print("load the state again:", reset.reason)

        stream = qgstream.connect("http://localhost:8000", last_event_id="0000000000-7", on_reset=on_reset)
    """

    reason: str
    id: str


class EventsMissed(ClientError):
    """The client has missed events, and `connect` was given no `on_reset`. Iterating again goes on behind the gap.

    Args:
        reset: What the server said.

    Attributes:
        reset: What the server said.

    Example::

        import qgstream

        stream = qgstream.connect("http://localhost:8000", last_event_id="0000000000-7")
        try:
            async for event in stream:
                print(event.data)
        except qgstream.EventsMissed as missed:
            print("load the state again:", missed.reset.reason)
        await stream.aclose()
    """

    code = "events_missed"

    def __init__(self, reset: Reset) -> None:
        super().__init__(f"events were missed ({reset.reason}): load your state again, then iterate again")
        self.reset = reset


@dataclass(frozen=True, slots=True)
class State:
    """What has become of the connection of a stream.

    Attributes:
        name: `connected`, or `waiting`: the stream has ended or could not be opened, and it is opened again.
        replay: Of `connected`: `none`, `complete` or `reset`.
        reason: Of `waiting`: a word of the server's `closing` or `rejected` message, or a sentence.
        seconds: Of `waiting`: after how many seconds the stream is opened again.

    Example::

        import qgstream

        def on_state(state: qgstream.State) -> None:
            print(state.name, state.replay or state.reason)

        stream = qgstream.connect("http://localhost:8000", on_state=on_state)
    """

    name: Literal["connected", "waiting"]
    replay: str = ""
    reason: str = ""
    seconds: float = 0.0


Token = str | Callable[[], str | Awaitable[str]]
OnReset = Callable[[Reset], Awaitable[None] | None]


class _Ended(Exception):
    """A connection has ended or could not be made. `stay_away_seconds` is the time that the server asked for, if it
    did. `is_jittered`: the server gave each client a different time."""

    def __init__(self, reason: str, *, stay_away_seconds: float | None = None, is_jittered: bool = False) -> None:
        super().__init__(reason)
        self.stay_away_seconds = stay_away_seconds
        self.is_jittered = is_jittered


def connect(
    url: str,
    *,
    topics: str | Iterable[str] = (),
    events: str | Iterable[str] = (),
    last_event_id: str = "",
    replay: Literal["latest"] | None = None,
    token: Token | None = None,
    headers: Mapping[str, str] | None = None,
    verify: ssl.SSLContext | bool = True,
    heartbeat_seconds: float = 5.0,
    give_up_seconds: float | None = None,
    max_event_bytes: int = sse.DEFAULT_MAX_PENDING_BYTES,
    on_reset: OnReset | None = None,
    on_state: Callable[[State], None] | None = None,
    http: httpx.AsyncClient | None = None,
) -> Stream:
    """Open the stream of a server, to be iterated with `async for`.

    The stream reconnects by itself and goes on where it was. Nothing is sent before the iteration begins.

    Args:
        url: The server's address; `/events` is added to an address without a path.
        topics: Names of topics, or prefixes that end in `*`; none is every topic.
        events: Only events of these types; none is every type.
        last_event_id: The id of the last event that the program has got; `earliest` is everything that the server
            holds.
        replay: `"latest"`: without an id, the stream begins with the newest event of each topic.
        token: A key or a token; or a function, asynchronous or not, that is asked for one before every connection.
        headers: Headers that are sent with every connection.
        verify: False to trust any certificate, or the TLS context to use.
        heartbeat_seconds: The server's `heartbeat.interval_seconds`. A connection that brings nothing for three times
            as long is given up.
        give_up_seconds: After how many seconds without a stream the iteration raises; None is never.
        max_event_bytes: The size of the largest event that is taken, in bytes.
        on_reset: Called when events were missed, instead of raising `EventsMissed`. It may be asynchronous: the events
            behind the gap wait for it. What it raises comes out of the iteration.
        on_state: Called when the connection is opened or lost.
        http: An `httpx.AsyncClient` of your own, for client certificates or other ways to a server. It is used instead
            of `verify`, and it is not closed.

    Returns:
        The stream.

    Raises:
        ValueError: An argument has a value that it cannot have.

    The iteration raises `CredentialsRefused`, `RequestRefused`, `Unreachable`, `EventsMissed`, or another
    `ClientError`.

    Example::

        import qgstream

        async for event in qgstream.connect("http://localhost:8000", topics=["orders"], last_event_id="earliest"):
            print(event.id, event.topic, event.data)
            break
    """
    if give_up_seconds is not None and not give_up_seconds >= 0:
        raise ValueError(f"give_up_seconds: got {give_up_seconds:g}, expected 0 or more")
    if not 0 < heartbeat_seconds < math.inf:
        raise ValueError(f"heartbeat_seconds: got {heartbeat_seconds:g}, expected more than 0")
    if not last_event_id.isprintable():
        raise ValueError(f"last_event_id: got {last_event_id!r}, expected the id of an event")
    query = [("topic", name) for name in _listed(topics)] + [("event", name) for name in _listed(events)]
    if replay is not None:
        query.append(("replay", replay))
    return Stream(
        url, [*query, ("envelope", "1")], last_event_id=last_event_id, token=token, headers=headers or {},
        verify=verify, silence_seconds=MISSED_HEARTBEATS * heartbeat_seconds, give_up_seconds=give_up_seconds,
        max_event_bytes=max_event_bytes, on_reset=on_reset, on_state=on_state, http=http,
    )  # fmt: skip


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


class Stream:
    """The events of a stream, for `async for`. `connect` makes it.

    An iteration owns its connection. When the program leaves the iteration, the connection is closed, and the next
    iteration goes on from `last_event_id`. `async with` closes the connection at the end of the block. The stream reads
    no faster than the program iterates, so a slow program makes the server wait.

    Attributes:
        last_event_id: The id of the last event that the iteration gave, or a later position.

    Example::

        import qgstream

        async with qgstream.connect("http://localhost:8000", last_event_id="earliest") as stream:
            async for event in stream:
                print(event.data)
                break
        print(stream.last_event_id)
    """

    def __init__(
        self, url: str, query: list[tuple[str, str]], *, last_event_id: str, token: Token | None,
        headers: Mapping[str, str], verify: ssl.SSLContext | bool, silence_seconds: float,
        give_up_seconds: float | None, max_event_bytes: int, on_reset: OnReset | None,
        on_state: Callable[[State], None] | None, http: httpx.AsyncClient | None,
    ) -> None:  # fmt: skip
        self.last_event_id = last_event_id
        self._url = httpx.URL(events_url(url))
        self._url = self._url.copy_with(params=[*self._url.params.multi_items(), *query])
        self._token = token
        self._headers = headers
        self._verify = verify
        self._http = http
        self._timeout = httpx.Timeout(CONNECT_SECONDS, read=silence_seconds, pool=None)
        self._give_up_seconds = give_up_seconds
        self._max_event_bytes = max_event_bytes
        self._on_reset = on_reset
        self._on_state = on_state
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._failures = 0  # in a row, since the last `connected`
        self._down_since: float | None = None
        self._is_whole = True  # the consumer has been told of every gap
        self._random = Random()
        self._current: weakref.ref[AsyncGenerator[ReceivedEvent]] | None = None

    def __aiter__(self) -> AsyncIterator[ReceivedEvent]:
        events = self._iterate(self._current() if self._current is not None else None)
        self._current = weakref.ref(events)
        return events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. While another task waits for an event, cancel that task instead."""
        events = self._current() if self._current is not None else None
        if events is not None:
            await events.aclose()

    async def _iterate(self, before: AsyncGenerator[ReceivedEvent] | None) -> AsyncGenerator[ReceivedEvent]:
        if before is not None:
            await before.aclose()  # it was left by `break`; if another task runs it, Python raises
        async with AsyncExitStack() as stack:
            http = self._http
            if http is None:
                http = await stack.enter_async_context(
                    transport.async_client(self._verify, self._url, follow_redirects=True)
                )
            while True:
                try:
                    async with aclosing(self._connection(http)) as events:
                        async for event in events:
                            yield event
                    ended = _Ended("the stream ended")
                except _Ended as error:
                    ended = error
                await self._wait(ended)

    async def _connection(self, http: httpx.AsyncClient) -> AsyncGenerator[ReceivedEvent]:
        """Yield the events of one connection."""
        # A connection begins without an id. This shows later whether the connection has sent one.
        parser = sse.Parser(max_pending_bytes=self._max_event_bytes)
        self._is_whole = True
        async with aclosing(self._bytes(http, await self._request_headers())) as received:
            async for some in received:
                for event in _parsed(parser, some):
                    found = opened(event)
                    if isinstance(found, OwnMessage):
                        await self._obey(found, parser)
                    else:
                        self.last_event_id = found.id
                        yield found
                self._keep(parser)  # a heartbeat that is a comment moves the position too

    async def _bytes(self, http: httpx.AsyncClient, headers: httpx.Headers) -> AsyncGenerator[bytes]:
        """Yield the bytes of one connection as they arrive. Raises `_Ended` for a fault that a new try may cure."""
        try:
            async with http.stream("GET", self._url, headers=headers, timeout=self._timeout) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await response.aread())
                media_type = response.headers.get("content-type", "")
                if media_type.partition(";")[0].strip().lower() != "text/event-stream":
                    raise ClientError(f"got {media_type[:100]!r}, expected text/event-stream")
                chunks = response.aiter_bytes()
                try:
                    async for some in chunks:
                        yield some
                finally:
                    # These are nested generators, and none closes the next one. On a closed connection they end at
                    # once. If they were only dropped, each would need a task of its own to end.
                    await response.aclose()
                    with suppress(httpx.HTTPError, httpx.StreamError):
                        async for _ in chunks:
                            pass
        except TryLater as error:
            raise _Ended(str(error), stay_away_seconds=error.retry_after_seconds) from error
        except httpx.HTTPError as error:
            if is_hopeless(error):
                raise ClientError(sentence(error)) from error
            raise _Ended(sentence(error)) from error

    async def _request_headers(self) -> httpx.Headers:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
        headers |= self._headers
        token = self._token
        if callable(token):
            given = token()
            token = await given if inspect.isawaitable(given) else given
        if token:
            headers["Authorization"] = bearer(token)
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        # 9.2.3: an id is sent as UTF-8, and other servers send ids that are not ASCII.
        return httpx.Headers(headers, encoding="utf-8")

    # The server's own messages.

    async def _obey(self, message: OwnMessage, parser: sse.Parser) -> None:
        if message.word == "connected":
            self._failures, self._down_since = 0, None
            # A server of version 0.1 sends the position after the gap here already. A client that stored this position
            # and then lost the connection would never be told of the gap.
            self._is_whole = message.replay != "reset"
            self._tell(State("connected", replay=message.replay))
        elif message.word == "reset":
            await self._reset(Reset(message.reason, parser.last_event_id))
        self._keep(parser)
        if message.word in ("closing", "rejected"):
            raise _Ended(message.reason, stay_away_seconds=self._retry_seconds, is_jittered=True)
        # Any other message is a heartbeat, or a kind that a newer server has added.

    async def _reset(self, reset: Reset) -> None:
        self._is_whole = False  # if `on_reset` fails, the next connection reports the gap again
        done = self._on_reset(reset) if self._on_reset is not None else None
        if inspect.isawaitable(done):
            await done
        self._is_whole = True
        # With replay="latest" there is no position before the first value. Until then, the next connection starts from
        # the beginning.
        self.last_event_id = reset.id
        if self._on_reset is None:
            raise EventsMissed(reset)

    def _keep(self, parser: sse.Parser) -> None:
        if parser.retry_ms is not None:
            self._retry_seconds = parser.retry_ms / 1000
        if self._is_whole and parser.last_event_id:
            self.last_event_id = parser.last_event_id

    def _tell(self, state: State) -> None:
        if self._on_state is not None:
            self._on_state(state)

    # Reconnecting.

    async def _wait(self, ended: _Ended) -> None:
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        seconds = self._pause(ended)
        limit = self._give_up_seconds
        if limit is not None and now + seconds - self._down_since > limit:
            # The next connection would come too late. Not before the time is over, which is what the words say.
            await asyncio.sleep(max(0.0, self._down_since + limit - now))
            raise Unreachable(f"no stream from {server_of(self._url)} for {limit:g} s: {ended}") from ended
        self._tell(State("waiting", reason=str(ended), seconds=seconds))
        await asyncio.sleep(seconds)

    def _pause(self, ended: _Ended) -> float:
        """Return the seconds to wait: the time that the server asked for, or else `retry:`, doubled for each failure in
        a row. A time that is not jittered yet is jittered here, because other clients lost the same server at the same
        moment.
        """
        failures, self._failures = self._failures, self._failures + 1
        asked, is_jittered, seconds = ended.stay_away_seconds, ended.is_jittered, MAX_ASKED_SECONDS
        if asked is None or asked < MIN_ASKED_SECONDS:
            first = min(max(self._retry_seconds, MIN_ASKED_SECONDS), MAX_ASKED_SECONDS)
            # 2**30 exceeds any limit, and 2**2000 overflows a float.
            seconds, is_jittered = min(first * 2 ** min(failures, 30), max(first, MAX_RETRY_SECONDS)), False
        elif asked > MAX_ASKED_SECONDS:
            is_jittered = False  # all clients that were told a longer time have the same bound now
        else:
            seconds = asked
        return seconds if is_jittered else seconds * (1 + self._random.random() / 2)


def _parsed(parser: sse.Parser, some: bytes) -> Iterator[sse.Event]:
    try:
        yield from parser.feed(some)
    except ValueError as error:
        raise ClientError(str(error)) from error  # the next connection would receive the same event
