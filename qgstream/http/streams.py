"""The shared part of handlers that open a stream: they parse the request, and admit or refuse it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from tornado.iostream import IOStream

from qgstream.auth.authenticator import Principal
from qgstream.errors import Banned, InvalidField, TooManyRequests, Unauthorized, Unavailable
from qgstream.events.publication import Position
from qgstream.events.subscription import Subscription, narrow
from qgstream.events.topics import check_pattern, check_text
from qgstream.http.base import BaseHandler
from qgstream.limits import Rejection
from qgstream.logs import quote
from qgstream.net.addresses import client_key
from qgstream.reasons import RejectReason, ResetReason
from qgstream.replay.resume import StreamStart
from qgstream.service.bans import Ban
from qgstream.service.refusal_log import result_of
from qgstream.wire.framing import Framing
from qgstream.wire.messages import MAX_IGNORED, MAX_IGNORED_CHARACTERS

_LAST_EVENT_ID_PARAMETERS = ("last_event_id", "lastEventId", "lastEventID")
_MAX_ORIGIN_CHARACTERS = 200
_PARAMETERS = frozenset({"topic", "event", "envelope", "replay", "access_token", *_LAST_EVENT_ID_PARAMETERS})


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parsed request. `last_event_id` is the position to resume from (None for a new stream). With `latest`, a
    stream without such a position begins with the newest event of each topic. `ignored` are the unknown parameters."""

    principal: Principal
    subscription: Subscription
    last_event_id: str | None
    latest: bool
    ignored: tuple[str, ...]


class Admitted(NamedTuple):
    """A stream that was admitted: the parsed request, and the result of `Hub.look_up` if the window alone cannot tell
    how the stream begins."""

    wanted: Wanted
    older: Position | ResetReason | None = None


class StreamHandler(BaseHandler):
    """Parses the parameters of a stream, refuses a stream over a limit, and passes the others to the hub."""

    is_counted = False  # a refusal: its error is not counted again

    # Parsing the request.

    def wanted(self, framing: Framing) -> Wanted | Rejection:
        """Return the parsed request, or the rejection of a banned client or of a client that cannot be authenticated at
        the moment. Raises `Unauthorized`, which is counted, `Forbidden` or `InvalidField`."""
        ban = self.service.ban_of(self.remote_ip)
        if ban is not None:
            return self._banned(ban)
        try:
            principal = self.authenticate()
        except Unauthorized as error:
            # A real 401: with any other response, a client would reconnect with the same token for ever.
            self._rejected("unauthorized", error)
            raise
        except Unavailable as error:
            # The check may succeed later, so an EventSource must reconnect.
            self._rejected("auth_unavailable", error)
            return Rejection("auth_unavailable", str(error), False)
        except TooManyRequests as error:
            self._rejected("auth_failure_rate_per_ip", error)
            return Rejection("auth_failure_rate_per_ip", str(error), True, error.retry_after_seconds)
        ban = self.service.ban_of(self.remote_ip, principal)
        if ban is not None:
            return self._banned(ban)
        subscription = self.subscription(principal, framing)
        return Wanted(principal, subscription, self._last_event_id(), self._wants_latest(), self._ignored())

    def _banned(self, ban: Ban) -> Rejection:
        now = time.monotonic()
        self._rejected("banned", ban.error(now))
        return ban.rejection(now)

    def subscription(self, principal: Principal, framing: Framing) -> Subscription:
        """Return the requested subscription, if this principal may have it."""
        limits, private = self.service.limits, self.service.private_topics
        if not self.request.query:  # by far the most common case, so nothing is parsed
            principal.require_subscribe(("*",), private.patterns)
            grants = frozenset(principal.subscribe)
            return narrow(Subscription(framing=framing, grants=grants, private_topics=private))
        topics = self._values("topic")
        if len(topics) > limits.max_topics_per_connection:
            raise InvalidField("topic", f"got {len(topics)}, expected at most {limits.max_topics_per_connection}")
        patterns = frozenset(check_pattern(topic) for topic in topics)
        principal.require_subscribe(patterns or ("*",), private.patterns)
        events = self._values("event")
        characters, most = sum(map(len, topics)) + sum(map(len, events)), limits.max_subscription_characters
        if characters > most:
            raise InvalidField(
                "topic" if topics else "event",
                f"got {characters} characters in all topics and types, expected at most {most} "
                "(limits.max_subscription_characters)",
            )
        if len(events) > limits.max_topics_per_connection:
            raise InvalidField("event", f"got {len(events)}, expected at most {limits.max_topics_per_connection}")
        if "*" in patterns:
            patterns = frozenset()
        asked = Subscription(
            patterns=patterns,
            events=frozenset(check_text("event", event) for event in events),
            envelope=self._flag("envelope") and framing is not Framing.WEBSOCKET,
            framing=framing,
            grants=frozenset(principal.subscribe),
            private_topics=private,
        )
        return narrow(asked)  # principals whose grants differ only for other topics share a feed

    def _wants_latest(self) -> bool:
        value = self.get_query_argument("replay", "") if self.request.query else ""
        if value not in ("", "latest"):
            raise InvalidField("replay", f"got {value[:50]!r}, expected 'latest'")
        return value == "latest"

    def _ignored(self) -> tuple[str, ...]:
        if not self.request.query:
            return ()
        names = self.request.query_arguments.keys() - _PARAMETERS
        if not names:
            return ()
        # Tornado decodes the names as latin-1, and clients send UTF-8.
        in_order = [name for name in self.request.query_arguments if name in names]
        return tuple([name.encode("latin-1").decode("utf-8", "replace") for name in in_order])

    def _values(self, name: str) -> list[str]:
        # Not get_query_arguments: it turns control characters into spaces, which would change the topic.
        return [self.decode_argument(value, name) for value in self.request.query_arguments.get(name, ())]

    def _flag(self, name: str) -> bool:
        value = self.get_query_argument(name, "0")
        if value not in ("0", "1", "true", "false"):
            raise InvalidField(name, f"got {value[:50]!r}, expected 1 or 0")
        return value in ("1", "true")

    def _last_event_id(self) -> str | None:
        header = self.request.headers.get("Last-Event-ID")
        if header:
            # Headers arrive decoded as latin-1; a browser sends UTF-8.
            return header.encode("latin-1").decode("utf-8", "replace")
        for name in _LAST_EVENT_ID_PARAMETERS if self.request.query else ():
            # Not get_query_argument: it refuses values that are not UTF-8, but a bad id must not get an error. An empty
            # value counts as absent: a client that adds an empty parameter must not hide its other id.
            for value in filter(None, reversed(self.request.query_arguments.get(name, ()))):
                return value.decode("utf-8", "replace")
        return None

    # Admission.

    async def admitted(self, framing: Framing) -> Admitted | Rejection:
        """Do everything before the first byte: parse the request, admit the stream, and ask the broker if necessary.

        A refused client causes no work for the broker. An admitted client keeps its place while the broker is asked.
        Raises the errors of `wanted`.
        """
        wanted = self.wanted(framing)
        if isinstance(wanted, Rejection):
            return wanted
        rejection = self._admit()
        if rejection is not None:
            return rejection
        hub = self.service.hub
        if not hub.is_outside_window(wanted.subscription, wanted.last_event_id):
            return Admitted(wanted)
        try:
            with hub.registry.place(client_key(self.remote_ip)):
                older = await hub.look_up(wanted.subscription, wanted.last_event_id or "")
        except Unavailable as error:
            # At the moment the server cannot tell what this client has missed. The client keeps its id and reconnects
            # later.
            self._rejected("broker_down", error)
            return Rejection("broker_down", str(error), False)
        # A reload may have changed the permissions while the broker was asked.
        wanted = self.wanted(framing)
        if isinstance(wanted, Rejection):
            return wanted
        rejection = self._admit(has_place=True)
        return Admitted(wanted, older) if rejection is None else rejection

    def _admit(self, *, has_place: bool = False) -> Rejection | None:
        rejection = self.service.admit(self.remote_ip, has_place=has_place, asker=self.asker)
        self.is_counted = rejection is not None
        return rejection

    def _rejected(self, reason: RejectReason, error: Exception) -> None:
        self.is_counted = True
        self.service.rejected(reason, self.remote_ip, asker=self.asker, error=error)

    def see_failure(self, error: BaseException) -> None:
        """See `BaseHandler`. This counts the refusals that have no reason of their own in the metrics of streams."""
        if self.is_counted:
            return
        asker, reason = self.asker, result_of(error)
        self.service.hub.talkers.refused_stream(asker, reason, time.monotonic())
        self.service.refusals.see("events.rejected", asker, reason, error)

    def refusal(self, rejection: Rejection) -> Banned | TooManyRequests | Unavailable:
        """Return the error of a refused client: 403 if it is banned, 429 if it exceeds a limit of its own, otherwise
        503."""
        # The socket is closed as well: a kept-alive socket would still use a descriptor, and descriptors are scarce
        # now.
        self.close_after_answer = True
        retry_after = self.service.retry_after_seconds(rejection.wait_seconds)
        if rejection.reason == "banned":
            return Banned(rejection.message, retry_after_seconds=retry_after)
        error = TooManyRequests if rejection.per_client else Unavailable
        return error(rejection.message, retry_after_seconds=retry_after, code=rejection.reason)

    # Opening the stream. Both functions are called in the same tick, as in `Hub`.

    def decide_start(self, admitted: Admitted) -> StreamStart:
        """Return the first messages of the stream."""
        wanted, older = admitted
        return self.service.hub.open(
            wanted.subscription, wanted.last_event_id, latest=wanted.latest, older=older, ignored=wanted.ignored
        )

    def adopt(self, stream: IOStream, wanted: Wanted, start: StreamStart) -> None:
        """Give the hub a detached stream whose headers and first bytes are written."""
        # The client may have disconnected by now, or this may be the second of two pipelined requests. Then no close
        # callback would run any more, and the slot would leak.
        if stream.closed():
            return
        ip, origin = self.remote_ip, self.other_origin()
        said: dict[str, object] = {}
        if origin is not None:
            said["origin"] = quote(origin, _MAX_ORIGIN_CHARACTERS)
            self.service.refused_origins.see(origin, self.service.cors)
        if wanted.ignored:
            said["ignored"] = [quote(name, MAX_IGNORED_CHARACTERS) for name in wanted.ignored[:MAX_IGNORED]]
        connection = self.service.hub.adopt(
            stream, wanted.subscription, start, ip=ip, client_key=client_key(ip), user_agent=self.user_agent,
            asker=self.asker, said=said,
        )  # fmt: skip
        self.service.access.remember(connection, wanted.principal, origin, self.service.cors)
        if wanted.principal.expires_at is not None:
            self.service.wheel.end_at(connection, wanted.principal.expires_at, "token_expired")
