"""The service: the state and the policies that the handlers share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from qgstream.auth.authenticator import ANONYMOUS, Authenticator, AuthSettings, Credentials, Principal
from qgstream.auth.jwks import KeySet
from qgstream.errors import ConfigError, QgstreamError, Unauthorized
from qgstream.events.topics import PrivateTopics
from qgstream.gauges import KeySetState
from qgstream.hub import Hub
from qgstream.limits import RETRY_JITTER, Admission, LimitSettings, Rejection, jittered
from qgstream.net.addresses import Network, client_key, parse_networks
from qgstream.net.allowed_hosts import parse_allowed_host
from qgstream.net.cors import CorsSettings
from qgstream.net.timer import Timer
from qgstream.reasons import RejectReason
from qgstream.service.access import AccessList
from qgstream.service.admin_streams import AdminStreams
from qgstream.service.bans import Ban, Bans
from qgstream.service.drain import DrainRetry, drain, is_spread
from qgstream.service.evictions import Evictions
from qgstream.service.failed_logins import Guesses
from qgstream.service.heartbeat import HeartbeatSettings, Wheel
from qgstream.service.limit_changes import tune
from qgstream.service.maintenance import Maintenance
from qgstream.service.publish_rates import PublishRates
from qgstream.service.refusal_log import RefusalLog
from qgstream.service.refused_origins import RefusedOrigins
from qgstream.service.reloads import Reloads
from qgstream.service.status_history import StatusHistory
from qgstream.talkers import Asker

# Often, because each run checks a part of the keys: 100 000 keys at once blocked the loop for 11 ms.
_SWEEP_SECONDS = 1
_FLUSH_SECONDS = 5


class Service:
    """A hub with its policies: who may connect, limits, heartbeats, bans and the drain.

    `async with` starts the service, and closes what is left at the end of the block. Call `drain` before, to end the
    streams slowly.

    Args:
        hub: The hub. The service starts and stops it.
        cors: Which pages may read.
        auth: Who may publish, subscribe and administer; by default nobody may publish over HTTP.
        heartbeat: How often each stream gets a heartbeat.
        trusted_proxies: The networks or addresses of proxies whose `X-Forwarded-For` is believed.
        allowed_hosts: Names, or patterns such as `*.example.com`, by which clients reach the server; without any, the
            server accepts every name.

    Attributes:
        hub: The hub.

    Raises:
        ValueError: A network or a name cannot be read.
        ConfigError: The keys cannot be used.

    Example::

        import qgstream
        from tornado.web import Application

        hub = qgstream.Hub()
        auth = qgstream.AuthSettings(publish_keys={"shop": "a-long-secret"})
        async with qgstream.Service(hub, auth=auth) as service:
            Application(qgstream.routes(service)).listen(8888)
            await hub.publish("orders", {"order": 7})
            await service.drain(seconds=0)
    """

    def __init__(
        self,
        hub: Hub,
        *,
        cors: CorsSettings | None = None,
        auth: AuthSettings | None = None,
        heartbeat: HeartbeatSettings | None = None,
        trusted_proxies: Sequence[Network | str] = (),
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self.hub = hub
        self._cors = cors or CorsSettings()
        self.auth = Authenticator(auth or AuthSettings())
        self._key_set = self._key_set_for(self.auth)
        self.private_topics = PrivateTopics((auth or AuthSettings()).private_topics)
        self.access = AccessList(hub)
        self.trusted_proxies = parse_networks([str(network) for network in trusted_proxies])
        self.allowed_hosts = tuple(parse_allowed_host(host) for host in allowed_hosts)
        self.publishing = 0  # publishes under way, which a draining server still completes
        self.bodies = hub.bodies  # the request bodies of these publishes
        self.takes_events = True  # until the last moment of a drain
        self.drain_retry: DrainRetry = "auto"  # see `DrainSettings.retry`
        self.wheel = Wheel(hub, heartbeat or HeartbeatSettings())
        self.viewers = AdminStreams(hub)
        self.bans = Bans()
        self.evictions = Evictions(hub)
        self.maintenance = Maintenance(hub, self.evictions)
        self.tuned: set[str] = set()  # limits that an operator has changed, see `tune`
        # Known only to the process around the service. A program that embeds the hub may leave both out.
        self.effective: Callable[[], Iterable[tuple[str, object, str]]] | None = None
        self.leave: Callable[[float | None, bool], float] | None = None
        # Loads the configuration again, or (True) only returns what that would change. Raises `ConfigError`.
        self.reload: Callable[[bool], Mapping[str, object]] | None = None
        self.reloads = Reloads(hub.metrics)
        self.status_history = StatusHistory(hub, self.reloads)
        self._admission = Admission()
        self._publish_rates = PublishRates()
        self._guesses = Guesses()
        self._sweeper = Timer(self._sweep, _SWEEP_SECONDS)
        self.refusals = RefusalLog()
        self.refused_origins = RefusedOrigins()
        self._flusher = Timer(self.refusals.flush, _FLUSH_SECONDS)
        hub.metrics.gauges.watch_key_set(self._key_set_state)
        hub.metrics.watch_bans(lambda kind: self.bans.count(kind, time.monotonic()))

    @property
    def limits(self) -> LimitSettings:
        """The limits in effect."""
        return self.hub.limits

    @property
    def cors(self) -> CorsSettings:
        """The origins that may read. A change closes the streams of pages whose origin is no longer allowed."""
        return self._cors

    @cors.setter
    def cors(self, settings: CorsSettings) -> None:
        if settings != self._cors:
            self._cors = settings
            self._review_access()

    async def start(self) -> None:
        """Start the hub, the heartbeats and what else runs in the background.

        Raises:
            OSError: The broker cannot be reached, or its log cannot be used.
            Unavailable: The broker's engine is away.
        """
        await self.hub.start()
        self.wheel.start()
        self._sweeper.start()
        self._flusher.start()
        self.status_history.start()
        if self._key_set is not None:
            self._key_set.start()
            # The first clients wait a short time for the keys; that is better than a refusal with a later reconnect.
            await self._key_set.tried()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def drain(self, seconds: float) -> None:
        """Close the streams one by one, and tell each client when to reconnect.

        From the call on, new streams are refused.

        Args:
            seconds: Over how many seconds the streams are closed.
        """
        self.hub.draining = True
        await drain(self.hub, seconds, asyncio.Event(), retry=self.drain_retry)

    async def stop(self) -> None:
        """Close every stream that is left, and the hub."""
        self.wheel.stop()
        self._sweeper.stop()
        self._flusher.stop()
        self.status_history.stop()
        self.refusals.flush(everything=True)
        if self._key_set is not None:
            self._key_set.stop()
        self.evictions.stop()
        self.viewers.close("drain")
        await self.hub.stop()

    def reload_auth(self, auth: AuthSettings) -> None:
        """Take new keys, tokens and private topics.

        They hold for open streams, too: the service closes the streams that it would not let in any more, with the
        reason `access_changed`. A topic that has become private goes only to streams with a grant.

        Args:
            auth: The new settings.

        Raises:
            ConfigError: The settings cannot be used; nothing was changed.
        """
        new = Authenticator(auth)
        self._take_key_set(new)
        self.auth = new
        self.private_topics.patterns = frozenset(auth.private_topics)
        self.viewers.review(new)
        self._review_access()

    def _review_access(self) -> None:
        if len(self.hub.registry):
            # The job uses the settings in effect when it visits a stream: another reload may have happened by then.
            self.hub.slices.add(self.access.review(lambda access: access.holds(self.auth, self.cors)))

    def _key_set_for(self, auth: Authenticator) -> KeySet | None:
        jwt = auth.settings.jwt
        if jwt is None or jwt.jwks_url is None:
            return None
        key_set = KeySet(jwt.jwks_url, self._replace_jwks)
        auth.on_unknown_key_id = key_set.refresh
        return key_set

    def _replace_jwks(self, document: object) -> int:
        auth = self.auth  # the authenticator in effect at this moment
        before, settings_change = auth.token_keys, auth.awaits_keys
        count = auth.replace_jwks(document)
        if settings_change or auth.token_keys != before:
            self._review_access()
        return count

    def _take_key_set(self, new: Authenticator) -> None:
        """Give the new authenticator its keys, so that it refuses no token because keys are missing.

        The new authenticator gets the key set that was fetched already. If its URL is another one, the keys from before
        stay valid until the first key set from the new URL has arrived.
        """
        old, jwt = self._key_set, new.settings.jwt
        if old is not None and jwt is not None and old.url == jwt.jwks_url and old.document is not None:
            # None of these keys may fit the new algorithms. Then the key set is fetched again at once.
            with contextlib.suppress(ConfigError):
                new.replace_jwks(old.document)
                new.on_unknown_key_id = old.refresh
                return
        if old is not None:
            old.stop()
        self._key_set = self._key_set_for(new)
        if self._key_set is not None:
            new.keep_tokens_of(self.auth)
            self._key_set.has_keys = new.token_keys is not None
            self._key_set.start()

    def _key_set_state(self) -> KeySetState | None:
        if self._key_set is None:
            return None
        return KeySetState(self._key_set.last_success_at, len(self.auth.token_keys or ()))

    def tune(self, changes: Mapping[str, object]) -> dict[str, tuple[object, object]]:
        """Change limits at once, until the process ends or a reload changes them.

        Args:
            changes: New values by the names of the limits.

        Returns:
            For each limit whose value is another one now: the value before, and the value now.

        Raises:
            InvalidField: A limit does not exist, or has a value that it cannot have; nothing was changed.
            Conflict: A value is not possible in this process; nothing was changed.
        """
        old = self.limits
        keys = self.auth.settings.publish_keys
        new = self.hub.limits = tune(old, changes, streams=len(self.hub.registry), keys=keys)
        changed = {name: (getattr(old, name), getattr(new, name)) for name in changes}
        changed = {name: (was, is_) for name, (was, is_) in changed.items() if was != is_}
        self.tuned.update(changed)
        return changed

    # Authentication and admission.

    def authenticate(self, credentials: Credentials, address: str, *, place: str = "") -> Principal:
        """Return the principal of a request; see `Authenticator.authenticate`.

        An address with too many failures gets `TooManyRequests`, whatever credentials it sends. Failures at different
        places are counted separately: failures at `/events` do not lock an operator with the same address out of
        `/admin`.
        """
        limits = self.limits
        if not limits.auth_failure_rate_per_ip or credentials.source == "none":
            return self.auth.authenticate(credentials, time.time())
        client = (place, client_key(address))
        self._guesses.check(limits, client, time.monotonic())
        try:
            return self.auth.authenticate(credentials, time.time())
        except Unauthorized as error:
            self._guesses.failed(limits, client, error, time.monotonic())
            raise

    def ban_of(self, address: str, principal: Principal = ANONYMOUS) -> Ban | None:
        """Return the ban that applies to this client, or None."""
        return self.bans.find(address, principal, time.monotonic()) if self.bans else None

    def check_ban(self, address: str, principal: Principal = ANONYMOUS) -> None:
        """Raise `Banned` for a banned client."""
        ban = self.ban_of(address, principal)
        if ban is not None:
            raise ban.error(time.monotonic())

    async def end_banned(self) -> int:
        """End the streams of all banned clients, each with a long `retry:`; return the number of these streams."""

        def retry_ms(ban: Ban) -> int:
            return int(1000 * self.retry_after_seconds(ban.rejection(time.monotonic()).wait_seconds))

        return await self.hub.slices.result(self.access.end_banned(self.ban_of, retry_ms))

    def admit(self, address: str, *, has_place: bool = False, asker: Asker | None = None) -> Rejection | None:
        """Return None if one more stream of this address may open now, or else the rejection, which is counted.

        `has_place`: the stream was admitted before it had to wait, and kept its place meanwhile (`Registry.place`).
        `asker`: further facts about the client, for the log and `/admin/talkers`.
        """
        hub, key = self.hub, client_key(address)
        rejection: Rejection | None = None
        if hub.draining:
            rejection = Rejection("draining", "the server is draining; reconnect to reach another one", False)
        elif hub.maintenance:
            rejection = Rejection("maintenance", "the server is under maintenance and accepts no streams", False)
        elif not has_place:
            rejection = self._admission.admit(
                hub.limits, key, now=time.monotonic(), connections=len(hub.registry) + hub.registry.places,
                connections_of_client=hub.registry.of_client(key),
            )  # fmt: skip
        if rejection is not None:
            self.rejected(rejection.reason, address, asker=asker)
        return rejection

    def rejected(
        self, reason: RejectReason, address: str, *, asker: Asker | None = None, error: Exception | None = None
    ) -> None:
        """Count and log a refused stream. `error` is the error for the client, when it says more than the reason."""
        self.hub.metrics.rejected(reason)
        asker = asker or Asker(address)
        self.hub.talkers.refused_stream(asker, reason, time.monotonic())
        self.refusals.see("events.rejected", asker, reason, error)

    def refused_request(self, address: str, error: QgstreamError) -> None:
        """Log a request that is malformed or too long. No handler has seen such a request."""
        asker = Asker(address)
        self.hub.talkers.refused_other(asker, "bad_request", time.monotonic())
        self.refusals.see("request.refused", asker, "bad_request", error)

    def retry_after_seconds(self, at_least: float = 0.0) -> float:
        """Return when a refused client should reconnect. The time is jittered, because many clients were refused at
        once."""
        if self.hub.draining and not is_spread(self.drain_retry, self.hub.broker):
            # The client has met the one draining process, for instance over a connection that a proxy had kept open.
            return jittered(max(at_least, self.limits.retry_seconds), self.hub.random, RETRY_JITTER)
        return jittered(max(at_least, self.limits.overload_retry_seconds), self.hub.random)

    def charge(self, principal: Principal, events: int, address: str) -> None:
        """Take `events` from the publish rates of a key and of an address. Raises `TooManyRequests` when one of these
        rates is exceeded."""
        self._publish_rates.charge(
            self.limits, events, client=client_key(address), publisher=principal.namespace, key=principal.key_name,
            now=time.monotonic(),
        )  # fmt: skip

    def _sweep(self) -> None:
        now, limits = time.monotonic(), self.limits
        self._admission.sweep(limits, now)
        self._publish_rates.sweep(limits, now)
        self._guesses.sweep(limits, now)
        self.bans.purge(now)
        self.hub.forget()
