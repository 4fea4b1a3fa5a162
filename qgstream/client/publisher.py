"""Publishers: events over HTTP from any program. A publisher repeats a request until it is accepted; each event is
stored once."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx
import msgspec

from qgstream.backoff import Backoff
from qgstream.client import transport
from qgstream.client.responses import (
    ClientError,
    Refused,
    TryLater,
    Unreachable,
    bearer,
    events_url,
    is_hopeless,
    refusal,
    sentence,
    server_of,
)
from qgstream.errors import InvalidField

JSON = "application/json"
NDJSON = "application/x-ndjson"
DEADLINE_SECONDS = 30.0
# A server remembers idempotency keys for five minutes. A repetition after that would publish the event twice.
MAX_DEADLINE_SECONDS = 240.0
# How long one try may go without a sign from the server, on a dead path, before a new connection is tried.
TRY_SECONDS = 10.0

# A proxy that refuses a request has not forwarded it.
_NOT_SENT = httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError

# Is told why a try failed, and after how many seconds the next one comes.
OnRetry = Callable[[ClientError, float], None]

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Published:
    """The server has taken an event.

    Attributes:
        id: The event's position in the log.
        subscribers: How many streams of the process that responded get the event.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="dev") as publisher:
            published = publisher.publish("orders", {"order": 7})
            print(published.id, published.subscribers)
    """

    id: str
    subscribers: int


@dataclass(frozen=True, slots=True)
class PublishedAll:
    """The server has taken a batch.

    Attributes:
        ids: The events' positions in the log, in the order of the batch.
        subscribers: How many streams of the process that responded get at least one of the events.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="dev") as publisher:
            published = publisher.publish_all([{"topic": "orders", "data": 7}, {"topic": "orders", "data": 8}])
            print(len(published.ids))
    """

    ids: tuple[str, ...]
    subscribers: int


class _Tries:
    """The tries of one request: the result of each, and whether and when the next one follows. Pure: time is an
    argument."""

    def __init__(
        self, deadline_seconds: float, now: float, random: Random | None = None, *, server: str = "the server",
        on_retry: OnRetry | None = None,
    ) -> None:  # fmt: skip
        if not 0 < deadline_seconds <= MAX_DEADLINE_SECONDS:
            raise ValueError(
                f"deadline_seconds: got {deadline_seconds:g}, expected more than 0 and at most "
                f"{MAX_DEADLINE_SECONDS:g}: after 300 s a server has forgotten the idempotency key"
            )
        self._ends_at = now + deadline_seconds
        self._backoff = Backoff(random=random)
        self._random = random or Random()
        self._is_uncertain = False
        self._server = server
        self._on_retry = on_retry

    def timeout(self, now: float) -> float:
        """Return the time limit of the next try in seconds."""
        return max(0.001, min(TRY_SECONDS, self._ends_at - now))

    def refused(self, error: Refused, now: float) -> float:
        """Return the seconds until the next try, or raise `error` when there is none."""
        self._is_uncertain = error.is_uncertain = self._is_uncertain or error.is_uncertain
        if not isinstance(error, TryLater):
            raise error
        # The server sends whole seconds. The jitter spreads clients that were told the same number. A Retry-After of 0
        # does not make the pauses shorter than they are without the header.
        told = (error.retry_after_seconds or 0.0) * (1 + self._random.random() / 4)
        return self._next(error, now, max(self._backoff.seconds(), told))

    def unanswered(self, error: httpx.HTTPError, now: float) -> float:
        """Do the same for a try without a response."""
        if is_hopeless(error):
            raise ClientError(sentence(error)) from error
        # Without a connection, nothing was sent.
        self._is_uncertain |= not isinstance(error, _NOT_SENT)
        said = f"no answer from {self._server}: {sentence(error)}"
        return self._next(Unreachable(said, is_uncertain=self._is_uncertain), now, self._backoff.seconds())

    def _next(self, error: ClientError, now: float, seconds: float) -> float:
        if now + seconds >= self._ends_at:
            raise error
        if self._on_retry is not None:
            self._on_retry(error, seconds)
        return seconds


def _event(
    topic: str | Sequence[str], data: object, *, event: str | None = None, retry_ms: int | None = None,
    private: bool = False, idempotency_key: str | None = None,
) -> dict[str, object]:  # fmt: skip
    return {
        "topic": topic, "data": data, "event": event, "retry": retry_ms, "private": private,
        "idempotency_key": idempotency_key or uuid4().hex,
    }  # fmt: skip


def _encoded(event: dict[str, object]) -> bytes:
    try:
        return _encode(event)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        name = _field_at_fault(event)
        got = type(event[name]).__name__
        raise InvalidField(name, f"got {got}, expected a value that JSON can represent: {error}") from error


def _field_at_fault(event: dict[str, object]) -> str:
    for name, value in event.items():
        try:
            _encode(value)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
            return name
    return "data"


def _encoded_all(events: Iterable[Mapping[str, Any]]) -> bytes:
    lines = []
    for number, event in enumerate(events, 1):
        try:
            lines.append(_encoded(_event(**event)))
        except (TypeError, InvalidField) as error:
            error.args = (f"event {number}: {error}",)
            raise
    return b"\n".join(lines)


class _Endpoint:
    """The server's URL, and the credentials of the publisher."""

    def __init__(
        self, url: str, *, key: str | None, headers: Mapping[str, str] | None, deadline_seconds: float,
        on_retry: OnRetry | None,
    ) -> None:  # fmt: skip
        self.url = events_url(url)
        self.headers = dict(headers or {})
        if key:
            self.headers["Authorization"] = bearer(key)
        _Tries(deadline_seconds, 0.0)
        self.deadline_seconds = deadline_seconds
        self._on_retry = on_retry

    def tries(self, deadline_seconds: float | None) -> _Tries:
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        return _Tries(seconds, time.monotonic(), server=server_of(self.url), on_retry=self._on_retry)

    def request(self, body: bytes, media_type: str, timeout: float) -> dict[str, Any]:
        headers = self.headers | {"Content-Type": media_type, "Accept": JSON}
        return {"url": self.url, "content": body, "headers": headers, "timeout": timeout}


def _document(response: httpx.Response) -> dict[str, Any]:
    """Return the document of a response. Raises `Refused`."""
    if response.status_code == 200:
        try:
            document: dict[str, Any] = response.json()
            document["subscribers"]
        except (ValueError, KeyError, TypeError):
            raise refusal(200, response.headers, response.content) from None
        return document
    raise refusal(response.status_code, response.headers, response.content)


class Publisher:
    """Publishes events to a server over HTTP.

    A call returns when the event is in the log. It repeats a try after no response, after 429 and 503, and after other
    temporary faults, and waits as long as the server asks for. Every event has an idempotency key, so the server never
    publishes an event twice. Threads may share a publisher. `with` closes it at the end of the block.

    Args:
        url: The server's address; `/events` is added to an address without a path.
        key: A publish key or a token.
        headers: Headers that are sent with every request.
        deadline_seconds: How long one call may take, its repetitions included: more than 0 and at most 240.
        verify: False to trust any certificate, or the TLS context to use.
        http: An `httpx.Client` of your own. It is used instead of `verify`, and it is not closed.
        on_retry: Called with the error and the seconds until the next try, each time that a try has failed and
            another one follows.

    Raises:
        ValueError: `deadline_seconds` is outside of its bounds.
        ClientError: The URL or the key cannot be used.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="dev") as publisher:
            publisher.publish("orders", {"order": 7}, event="created")
    """

    def __init__(
        self, url: str, *, key: str | None = None, headers: Mapping[str, str] | None = None,
        deadline_seconds: float = DEADLINE_SECONDS, verify: ssl.SSLContext | bool = True,
        http: httpx.Client | None = None, on_retry: OnRetry | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = _Endpoint(
            url, key=key, headers=headers, deadline_seconds=deadline_seconds, on_retry=on_retry
        )  # fmt: skip
        self._http = transport.client(verify, self._endpoint.url) if http is None else http
        self._is_own = http is None

    def publish(
        self, topic: str | Sequence[str], data: object, *, event: str | None = None, retry_ms: int | None = None,
        private: bool = False, idempotency_key: str | None = None, deadline_seconds: float | None = None,
    ) -> Published:  # fmt: skip
        """Publish one event. The call returns when the event is in the log.

        Args:
            topic: The topic, or a list of topics. A subscriber of several of them gets the event once.
            data: A string, which is sent as it is, or anything that JSON can hold.
            event: The type of the event.
            retry_ms: After how many milliseconds a browser that gets the event reconnects, from then on.
            private: Whether only streams whose credentials grant the topic get the event.
            idempotency_key: A name for the event; by default a random one. The server publishes one event for a key
                within five minutes.
            deadline_seconds: How long this call may take, instead of the publisher's `deadline_seconds`.

        Returns:
            The id of the event, and the number of streams that get it.

        Raises:
            CredentialsRefused: The key does not allow this.
            RequestRefused: The event is not valid, or larger than the server takes.
            TryLater: The server refused the event until the time was over.
            Unreachable: No response came before the deadline.
            InvalidField: JSON cannot hold the data.
        """
        made = _event(
            topic, data, event=event, retry_ms=retry_ms, private=private, idempotency_key=idempotency_key
        )  # fmt: skip
        document = self._post(_encoded(made), JSON, deadline_seconds)
        return Published(document["id"], document["subscribers"])

    def publish_all(
        self, events: Iterable[Mapping[str, Any]], *, deadline_seconds: float | None = None
    ) -> PublishedAll:
        """Publish a batch: all of its events, or none.

        Args:
            events: For each event a mapping of the arguments of `publish`.
            deadline_seconds: How long this call may take, instead of the publisher's `deadline_seconds`.

        Returns:
            The ids of the events, and the number of streams that get at least one of them.

        Raises:
            CredentialsRefused: The key does not allow this.
            RequestRefused: An event is not valid, or the batch is larger than the server takes.
            TryLater: The server refused the batch until the time was over.
            Unreachable: No response came before the deadline.
            InvalidField: JSON cannot hold the data of an event.
        """
        document = self._post(_encoded_all(events), NDJSON, deadline_seconds)
        return PublishedAll(tuple(document["ids"]), document["subscribers"])

    def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _post(self, body: bytes, media_type: str, deadline_seconds: float | None) -> dict[str, Any]:
        tries = self._endpoint.tries(deadline_seconds)
        while True:
            request = self._endpoint.request(body, media_type, tries.timeout(time.monotonic()))
            try:
                return _document(self._http.post(**request))
            except Refused as error:
                seconds = tries.refused(error, time.monotonic())
            except httpx.HTTPError as error:
                seconds = tries.unanswered(error, time.monotonic())
            time.sleep(seconds)


class AsyncPublisher:
    """Publishes events to a server over HTTP, in a program on asyncio.

    See `Publisher`: the methods and errors are the same.

    Args:
        url: The server's address; `/events` is added to an address without a path.
        key: A publish key or a token.
        headers: Headers that are sent with every request.
        deadline_seconds: How long one call may take, its repetitions included: more than 0 and at most 240.
        verify: False to trust any certificate, or the TLS context to use.
        http: An `httpx.AsyncClient` of your own. It is used instead of `verify`, and it is not closed.
        on_retry: Called with the error and the seconds until the next try, each time that a try has failed and
            another one follows.

    Raises:
        ValueError: `deadline_seconds` is outside of its bounds.
        ClientError: The URL or the key cannot be used.

    Example::

        import qgstream

        async with qgstream.AsyncPublisher("http://localhost:8000", key="dev") as publisher:
            await publisher.publish("orders", {"order": 7}, event="created")
    """

    def __init__(
        self, url: str, *, key: str | None = None, headers: Mapping[str, str] | None = None,
        deadline_seconds: float = DEADLINE_SECONDS, verify: ssl.SSLContext | bool = True,
        http: httpx.AsyncClient | None = None, on_retry: OnRetry | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = _Endpoint(
            url, key=key, headers=headers, deadline_seconds=deadline_seconds, on_retry=on_retry
        )  # fmt: skip
        self._http = transport.async_client(verify, self._endpoint.url) if http is None else http
        self._is_own = http is None

    async def publish(
        self, topic: str | Sequence[str], data: object, *, event: str | None = None, retry_ms: int | None = None,
        private: bool = False, idempotency_key: str | None = None, deadline_seconds: float | None = None,
    ) -> Published:  # fmt: skip
        """Publish one event. The call returns when the event is in the log. See `Publisher.publish`."""
        made = _event(
            topic, data, event=event, retry_ms=retry_ms, private=private, idempotency_key=idempotency_key
        )  # fmt: skip
        document = await self._post(_encoded(made), JSON, deadline_seconds)
        return Published(document["id"], document["subscribers"])

    async def publish_all(
        self, events: Iterable[Mapping[str, Any]], *, deadline_seconds: float | None = None
    ) -> PublishedAll:
        """Publish a batch: all of its events, or none. See `Publisher.publish_all`."""
        document = await self._post(_encoded_all(events), NDJSON, deadline_seconds)
        return PublishedAll(tuple(document["ids"]), document["subscribers"])

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _post(self, body: bytes, media_type: str, deadline_seconds: float | None) -> dict[str, Any]:
        tries = self._endpoint.tries(deadline_seconds)
        while True:
            request = self._endpoint.request(body, media_type, tries.timeout(time.monotonic()))
            try:
                return _document(await self._http.post(**request))
            except Refused as error:
                seconds = tries.refused(error, time.monotonic())
            except httpx.HTTPError as error:
                seconds = tries.unanswered(error, time.monotonic())
            await asyncio.sleep(seconds)
