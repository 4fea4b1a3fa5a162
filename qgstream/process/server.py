"""One process: build, start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from tornado.web import Application

from qgstream.auth.authenticator import Authenticator
from qgstream.brokers.base import open_broker
from qgstream.errors import ConfigError, QgstreamError, Unavailable
from qgstream.http.app import admin_app, public_app
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.logs import configure, is_text, log
from qgstream.net import cors
from qgstream.net.addresses import is_loopback, parse_networks
from qgstream.net.certificates import expires_at, load_cert_chain
from qgstream.net.sockets import (
    ADMIN_SOCKETS,
    StreamServer,
    TlsContext,
    log_descriptors,
    raise_descriptor_limit,
)
from qgstream.net.timer import Timer
from qgstream.net.tls import ALPN_PROTOCOL
from qgstream.process.banner import banner, farewell
from qgstream.process.config import Config, Loaded, ServerSettings
from qgstream.process.config_diff import FIXED, Changes, Side, between
from qgstream.process.listening import listen
from qgstream.process.reaper import Reaper
from qgstream.process.signals import Signals
from qgstream.process.systemd import Supervisor
from qgstream.service.drain import FLUSH_SECONDS, drain, wait
from qgstream.service.limit_changes import carry_over
from qgstream.service.service import Service
from qgstream.sources.base import open_sources
from qgstream.sources.runner import Intakes
from qgstream.terminal import colours, is_terminal

# The cyclic garbage collector makes a handshake 50 % more expensive at 10 000 streams: it visits every live object, and
# the objects of streams are not garbage. The objects from the start are frozen out of it. A young collection comes
# after 20 000 allocations instead of 700, and a full collection a hundred times less often (benchmarks/collector.py).
_GC_THRESHOLDS = (20_000, 20, 50)


_ADMIN_LIMITS = LimitSettings(max_sockets=ADMIN_SOCKETS)

# How long publishes under way, and sources that clean up, may take at the end of a drain.
_ANSWER_SECONDS = 5.0

# When the server is told to stop during its start: how long it may take to close a broker that does not respond.
_GIVE_UP_SECONDS = 1.0

# How long the process may take to end after the server: programs of sources have 3 seconds, and threads may hang.
_EXIT_SECONDS = 5.0

# The most time that an end takes besides drain.notice_seconds and drain.seconds, for a supervisor that would kill the
# process.
STOP_SECONDS = FLUSH_SECONDS + _ANSWER_SECONDS


@dataclass
class Server:
    """A configured server. `start` it on a running loop, then `serve` until it is told to stop.

    `reload` loads the configuration again on SIGHUP, or is None if there is nothing to load from. `loaded` has the
    origin of each value of `config`; without it, the values come from the program that made this object.
    """

    config: Config
    reload: Callable[[], Loaded] | None = None
    loaded: Loaded | None = None  # the origin of the configuration
    supervisor: Supervisor = field(default_factory=lambda: Supervisor({}))  # is told of the start, the end and reloads
    ports: list[int] = field(default_factory=list)
    admin_ports: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Here and not in `start`: a signal to stop may arrive while `start` waits for a broker.
        self._drain_seconds: float | None = None
        self._started = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._reload_later = False
        self._left = asyncio.Event()
        self._drain_task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def is_started(self) -> bool:
        """Whether the server serves, or has served."""
        return self._started.is_set()

    async def start(self) -> None:
        """Bind, open the broker, and begin to serve. Raises `ConfigError`, `OSError` or `Unavailable` when that fails.

        Also returns as soon as `leave` is called: then `is_started` is false, and `serve` returns at once.
        """
        if self.is_leaving():
            return
        starting = self._starting = asyncio.get_running_loop().create_task(self._start())
        given_up = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait({starting, given_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()
            if not starting.done():
                starting.cancel()
        if self.is_leaving() and not self.is_started:
            return
        await starting  # raises the error of the start
        if self._reload_later:
            self.reconfigure()

    def is_leaving(self) -> bool:
        """Whether it was told to end."""
        return self._drain_task is not None

    async def _start(self) -> None:
        config = self.config
        broker = open_broker(config.broker.url, timeout_seconds=config.broker.timeout_seconds)
        sources = open_sources(config.sources)
        hub = Hub(broker=broker, limits=config.limits, history=config.history)
        hub.needs_broker = config.broker.required_for_ready
        self._intakes = Intakes(hub, sources)
        self.service = Service(
            hub, cors=config.cors, auth=config.auth, heartbeat=config.heartbeat,
            trusted_proxies=parse_networks(config.server.trusted_proxies), allowed_hosts=config.server.allowed_hosts,
        )  # fmt: skip
        self.service.effective = self.effective
        self.service.leave = self.leave_within
        if self.reload is not None:
            self.service.reload = self.reload_now
        self.service.drain_retry = config.drain.retry
        self._started_with, self._started_from = config, self.loaded
        self._side = Side.of(config, self.service.auth)
        has_admin = bool(config.admin.port)
        tls = tls_context(config.server)
        self._note_certificate(config.server)
        sockets: list[socket.socket] = []
        admin_sockets: list[socket.socket] = []
        try:
            await self.service.start()
            # Not earlier: the kernel accepts connections as soon as the socket listens. A load balancer would send new
            # clients here, where they wait for the end of the start, although another process could serve them at once.
            server = config.server
            sockets = listen("server", server.host, server.port, reuse_port=server.reuse_port)
            admin_sockets = listen("admin", config.admin.host, config.admin.port) if has_admin else []
        except BaseException:
            for one in sockets:
                one.close()
            await self.service.stop()
            raise
        public = public_app(self.service, with_operator_routes=not has_admin, on_loopback=_on_loopback(sockets))
        self._servers = [self._listen(public, sockets, tls)]
        self.ports = [s.getsockname()[1] for s in sockets]
        if has_admin:
            # Its sockets are counted separately, because streams must not lock the operator out.
            admin = StreamServer(
                admin_app(self.service, on_loopback=_on_loopback(admin_sockets)),
                limits=lambda: _ADMIN_LIMITS,
                detached=lambda: len(self.service.viewers),
                refused_request=self.service.refused_request,
                cors_headers=self._cors_headers,
                keepalive_seconds=self._keepalive_seconds,
            )
            admin.add_sockets(admin_sockets)
            self._servers.append(admin)
            self.admin_ports = [s.getsockname()[1] for s in admin_sockets]
        self._intakes.start()
        if not config.auth.publish_keys and config.auth.jwt is None:
            log.info(
                "auth.no_publish_keys", extra={"change": "to publish over HTTP, set auth.publish_keys or auth.jwt"}
            )
        self._started.set()
        log.info(
            "server.started",
            extra={
                "host": config.server.host, "port": self.ports[0], "tls": tls is not None,
                "admin_port": self.admin_ports[0] if self.admin_ports else None,
            },
        )  # fmt: skip

    def _listen(self, app: Application, sockets: list[socket.socket], tls: ssl.SSLContext | None) -> StreamServer:
        server = StreamServer(
            app, limits=lambda: self.service.limits,
            detached=lambda: len(self.service.hub.registry) + len(self.service.viewers),
            refused=lambda ip: self.service.rejected("max_sockets", ip),
            refused_request=self.service.refused_request, cors_headers=self._cors_headers,
            keepalive_seconds=self._keepalive_seconds, ssl_options=tls,
        )  # fmt: skip
        server.add_sockets(sockets)
        return server

    def _note_certificate(self, settings: ServerSettings) -> None:
        """Record for the metrics until when the certificate that clients now get is valid."""
        date = None if settings.certfile is None else expires_at(settings.certfile)
        self.service.hub.metrics.gauges.watch_certificate("server", lambda: date)

    def _cors_headers(self, origin: str | None) -> list[tuple[str, str]]:
        return cors.headers(self.service.cors, origin)

    def _keepalive_seconds(self) -> float:
        return self.config.server.keepalive_seconds

    async def serve(self) -> None:
        """Return when the last stream has ended after `leave`, or at once if `leave` was called before the start."""
        await self._left.wait()
        if self._drain_task is not None:
            await self._drain_task  # raises the error of the drain

    def leave(self) -> None:
        """Begin the drain; a second call ends the drain at once."""
        if self._drain_task is None:
            self._drain_task = asyncio.get_running_loop().create_task(self._leave())
        else:
            self._hurry.set()

    def interrupt(self) -> None:
        """`leave` for Ctrl-C on a terminal: without streams and publishes nothing has to wait, and it ends at once."""
        is_idle = self.is_started and not len(self.service.hub.registry) and not self.service.publishing
        if is_idle and not self.is_leaving():
            self._hurry.set()
        self.leave()

    @property
    def seconds_to_leave(self) -> tuple[int, float]:
        """How many streams there are, and the seconds over which they would end, the notice included."""
        streams = len(self.service.hub.registry) if self.is_started else 0
        return streams, self.config.drain.notice_seconds + self.config.drain.seconds

    def leave_within(self, seconds: float | None, now: bool) -> float:
        """Begin the drain over `seconds` (None: `drain.seconds`) unless it has begun; with `now`, end the drain at
        once.

        Returns the seconds of the drain that is under way.
        """
        if self._drain_task is None:
            self._drain_seconds = seconds
            self.leave()
        if now:
            self._hurry.set()
        return self.config.drain.seconds if self._drain_seconds is None else self._drain_seconds

    async def _leave(self) -> None:
        try:
            if self.is_started:
                await self._drain()
            else:
                await self._give_up()
        finally:
            self._left.set()

    async def _give_up(self) -> None:
        """Cancel the start, which waits for a broker or for keys: the server is no longer needed."""
        self.supervisor.stopping(STOP_SECONDS)
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting}, timeout=_GIVE_UP_SECONDS)
            if self._starting.done() and not self._starting.cancelled():
                self._starting.exception()  # the error no longer matters
        if self.is_started:  # the start was faster
            await self._drain()
        else:
            log.info("server.stopped")

    async def _drain(self) -> None:
        settings = self.config.drain
        self.service.hub.draining = True  # /ready reports it, new streams are refused
        seconds = settings.seconds if self._drain_seconds is None else self._drain_seconds
        self.supervisor.stopping(settings.notice_seconds + seconds + STOP_SECONDS)
        await wait(self._hurry, settings.notice_seconds)
        self._servers[0].stop()  # the admin port stays, for /metrics
        await drain(self.service.hub, seconds, self._hurry, retry=settings.retry)
        # The streams have ended. Publishes under way are completed; new ones go to other servers.
        self.service.takes_events = False
        self._intakes.leave()
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (self.service.publishing or self._intakes.running) and time.monotonic() < deadline:
            if self._hurry.is_set():
                break
            await wait(self._hurry, 0.02)
        self._intakes.stop(late=not self._hurry.is_set())
        for server in self._servers:
            server.stop()
            await server.close_all_connections()
        await self.service.stop()
        log.info("server.stopped")

    def reconfigure(self) -> None:
        """Load the configuration again and apply what can change; on an error, keep the current configuration and log
        the error."""
        if self.reload is None:
            return
        if not self.is_started:
            self._reload_later = True  # the configuration of the start was loaded before
            return
        with suppress(ConfigError):  # the log has the error
            self.reload_now(dry_run=False)

    def reload_now(self, dry_run: bool) -> Mapping[str, object]:
        """Do the same as `reconfigure`; with `dry_run`, only check. Returns the changes as JSON. Raises
        `ConfigError`."""
        if self.reload is None:
            raise RuntimeError("there is nothing to load from")
        try:
            loaded = self.reload()
            config = loaded.config
            limits, kept, forgotten = carry_over(
                self.service.limits, self.service.tuned, self.config.limits, config.limits
            )
            raise_descriptor_limit(limits)
            tls = tls_context(config.server)
            side = Side.of(config, Authenticator(config.auth))
            if not dry_run:
                self.service.reload_auth(config.auth)
        except ConfigError as error:
            if not dry_run:
                log.error("config.rejected", extra={"problems": error.problems})
                self.service.reloads.rejected(error.problems)
            raise
        if dry_run:
            return self._outcome(side, limits, kept, forgotten)
        for warning in loaded.warnings:
            log.warning("config.warning", extra={"warning": warning})
        outcome = self._outcome(side, limits, kept, forgotten)
        self._take(config, limits, tls)
        self.config, self.loaded, self._side = config, loaded, side
        self.service.tuned.difference_update(forgotten)
        self.service.reloads.loaded()
        log.info("config.reloaded", extra=outcome)
        return outcome

    def _outcome(self, new: Side, limits: LimitSettings, kept: list[str], forgotten: list[str]) -> dict[str, object]:
        # A limit that was changed through /admin/limits is a value of the old configuration, and of the new one if it
        # is kept.
        before = self._side.config.model_copy(update={"limits": self.service.limits})
        after = new.config.model_copy(update={"limits": limits})
        changes: Changes = between(replace(self._side, config=before), replace(new, config=after))
        needs_restart = [key for key in FIXED if _value(new.config, key) != _value(self._started_with, key)]
        return {
            "needs_restart": needs_restart, "limits_reset": forgotten, "limits_kept": kept, **changes.document(),
        }  # fmt: skip

    def _take(self, config: Config, limits: LimitSettings, tls: ssl.SSLContext | None) -> None:
        self.service.cors = config.cors
        self.service.wheel.settings = config.heartbeat
        self.service.trusted_proxies = parse_networks(config.server.trusted_proxies)
        self.service.allowed_hosts = config.server.allowed_hosts
        self.service.hub.reload(limits=limits, history=config.history)
        self.service.hub.needs_broker = config.broker.required_for_ready
        self.service.drain_retry = config.drain.retry
        if config.log != self.config.log:
            configure(config.log)
        started = self._started_with.server
        if tls is not None and (config.server.certfile, config.server.keyfile) == (started.certfile, started.keyfile):
            # The same files may contain a new certificate: it is used for the handshakes from now on. Other files need
            # a restart. The whole context is replaced: a context with half of a pair serves no client any more.
            self._servers[0].ssl_options = tls
            self._note_certificate(config.server)

    def effective(self) -> Iterator[tuple[str, object, str]]:
        """Return every key of the configuration in effect, its value without secrets, and its origin."""
        sections: dict[str, Any] = {"limits": self.service.limits}
        for key in FIXED:
            name, _, last = key.partition(".")
            fixed = _value(self._started_with, key)
            section = sections.get(name, getattr(self.config, name))
            sections[name] = section.model_copy(update={last: fixed}) if last else fixed
        in_effect = self.config.model_copy(update=sections)
        for key, value, _ in Loaded(in_effect, (), defaultdict(str)).effective():
            loaded = self._started_from if key in FIXED else self.loaded
            source = "program" if loaded is None else loaded.came_from[key]
            if key in FIXED and _value(self.config, key) != _value(self._started_with, key):
                source += " (changed since, which needs a restart)"
            elif key.startswith("auth.jwt.") and self.service.auth.awaits_keys:
                source += " (in effect once its key set has come)"
            yield key, value, "admin API" if key.removeprefix("limits.") in self.service.tuned else source


def _on_loopback(sockets: Sequence[socket.socket]) -> bool:
    return all(is_loopback(listener.getsockname()[0]) for listener in sockets)


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """Return the TLS context for HTTPS, or None without a certificate. Raises `ConfigError` for files that cannot be
    used."""
    if settings.certfile is None or settings.keyfile is None:
        return None
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([ALPN_PROTOCOL])
    try:
        load_cert_chain(context, settings.certfile, settings.keyfile)
    except OSError as error:
        raise ConfigError([f"server.certfile, server.keyfile: cannot be used: {error}"]) from error
    return context


def _value(config: Config, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


async def _main(server: Server, signals: Signals) -> None:
    loop = asyncio.get_running_loop()
    signals.watch(loop, leave=lambda number: _leave(server, number), reload=lambda: _reload(server))
    await server.start()
    if server.is_started:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        _begin_watchdog(server.supervisor)
        Reaper().start()
        server.supervisor.ready()
        if _has_person(server):
            admin_port = server.admin_ports[0] if server.admin_ports else None
            _tell(banner(server.config, port=server.ports[0], admin_port=admin_port, colours=colours(sys.stderr)))
    await server.serve()
    signals.ignore(loop)
    _end_by(_EXIT_SECONDS if server.is_started else _GIVE_UP_SECONDS)


def _has_person(server: Server) -> bool:
    """Whether somebody reads the log on a terminal."""
    return is_text(server.config.log) and is_terminal(sys.stderr)


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)  # noqa: T201  # for a person, and not for the log


def _leave(server: Server, number: signal.Signals) -> None:
    if number != signal.SIGINT or not _has_person(server):
        server.leave()
        return
    said = None if server.is_leaving() else farewell(*server.seconds_to_leave)
    server.interrupt()
    if said is not None:
        _tell(said)


def _end_by(seconds: float) -> None:
    """End the process after `seconds` if it has not ended by then: asyncio and Python wait for threads at the end, and
    a thread may hang in a name server or a disk that does not respond."""
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _reload(server: Server) -> None:
    if not server.is_started:
        server.reconfigure()  # later; the manager would take the end of this reload for the end of the start
        return
    server.supervisor.reloading()
    try:
        server.reconfigure()
    finally:
        server.supervisor.ready()


def _begin_watchdog(supervisor: Supervisor) -> None:
    # On the loop, because the watchdog must find a loop that hangs. Twice in the time, as sd_watchdog_enabled(3) asks.
    if supervisor.watchdog_seconds is not None:
        Timer(supervisor.alive, supervisor.watchdog_seconds / 2).start()


def run(loaded: Loaded, reload: Callable[[], Loaded] | None = None, signals: Signals | None = None) -> int:
    """Serve until a signal (see `Signals`) has drained the streams; return the exit status. Raises `ConfigError`."""
    config = loaded.config
    configure(config.log)
    for warning in loaded.warnings:
        log.warning("config.warning", extra={"warning": warning})
    raise_descriptor_limit(config.limits)
    log_descriptors(config.limits)
    try:
        asyncio.run(_main(Server(config, reload, loaded, Supervisor()), signals or Signals()))
    except (OSError, Unavailable) as error:
        if is_text(config.log):
            raise QgstreamError(str(error)) from error  # a sentence for a person
        log.error("server.failed", extra={"reason": str(error)})
        return 1
    return 0
