"""The configuration: composes the sections that the modules below declare, and loads it.

Precedence: defaults < file < environment < flags. Every value knows where it came from, all problems are found in one
go, and no problem shows a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from qgstream.auth.authenticator import AuthSettings
from qgstream.brokers.base import DEFAULT_TIMEOUT_SECONDS
from qgstream.errors import ConfigError
from qgstream.events.history import HistorySettings
from qgstream.limits import LimitSettings
from qgstream.logs import LogSettings
from qgstream.net.addresses import is_loopback, parse_network
from qgstream.net.allowed_hosts import parse_allowed_host
from qgstream.net.cors import CorsSettings
from qgstream.net.sockets import KEEPALIVE_SECONDS
from qgstream.process import development
from qgstream.process.config_loading import Catalogue, Key, Reading
from qgstream.service.drain import DrainSettings
from qgstream.service.heartbeat import HeartbeatSettings
from qgstream.settings import Section
from qgstream.sources.base import SourceSettings
from qgstream.suggestions import did_you_mean

ENVIRONMENT_PREFIX = "QGSTREAM_"
# This variable names the file itself, so it is not a key of the configuration.
ENVIRONMENT_FILE = "QGSTREAM_CONFIG"
# The variables of client commands: known, and ignored by the server.
_OF_CLIENTS = ("QGSTREAM_PUBLISH_KEY", "QGSTREAM_TOKEN", "QGSTREAM_ADMIN_KEY")
NO_SECRETS = (
    "the keys of auth cannot be set by a flag, because every process on the machine can read flags: "
    "use the configuration file or the environment (QGSTREAM_AUTH__...)"
)
_NO_SOURCES = (
    "sources cannot be set by a flag, because every process on the machine can read flags: "
    "use the configuration file or the environment (QGSTREAM_SOURCES)"
)
_NOT_BY_FLAG = {"auth": NO_SECRETS, "sources": _NO_SOURCES}
# The keys with a flag of their own; all others are set with `--set key=value`.
FLAGS = {"server.host": "--host", "server.port": "--port", "log.level": "--log-level"}
_DEV_KEYS = ("auth.publish_keys", "auth.admin_keys")


def _network(text: str) -> str:
    try:
        parse_network(text, strict=True)
    except ValueError as error:
        # 10.0.0.1/8 is a typing error that would trust sixteen million addresses, so it is an error.
        raise ValueError(f"got {text!r}, expected an address or a network such as 10.0.0.0/8 ({error})") from None
    return text


class ServerSettings(Section):
    """`[server]`: the addresses to listen on, and the trusted proxies."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 is every IPv4 address.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; with 0 the system chooses a free port.")
    certfile: Path | None = Field(
        None,
        description="Certificate chain in PEM. With certfile and keyfile the server speaks HTTPS.",
        examples=["/etc/qgstream/tls.crt"],
    )
    keyfile: Path | None = Field(
        None, description="Private key of the certificate, in PEM.", examples=["/etc/qgstream/tls.key"]
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="Networks or addresses of the proxies whose X-Forwarded-For and X-Forwarded-Proto count."
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(parse_allowed_host)], ...] = Field(
        (),
        description='Names by which clients reach this server: exact names, `*.example.com` patterns, or "*" for every '
        "name. The server refuses requests with another Host. Without names, a server on the loopback accepts "
        "localhost and loopback addresses, and every other server accepts every name.",
    )
    keepalive_seconds: float = Field(
        KEEPALIVE_SECONDS,
        gt=0,
        le=86_400,
        description="Idle time allowed between two requests on one connection; set it above that of the proxy.",
    )
    reuse_port: bool = Field(False, description="Whether other processes may share the port (SO_REUSEPORT).")

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.certfile is None) != (self.keyfile is None):
            got, missing = ("certfile", "keyfile") if self.keyfile is None else ("keyfile", "certfile")
            raise ValueError(f"got {got} without {missing}, expected both (HTTPS) or neither")
        return self


class AdminSettings(Section):
    """`[admin]`: the operator's port."""

    host: str = Field("127.0.0.1", min_length=1, description="Address of the operator's port.")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port for /metrics, /ready and /admin, which then move from the public port to this port; "
        "with 0 they stay on the public port.",
    )


class BrokerSettings(Section):
    """`[broker]`: the broker, which keeps the log of events."""

    url: str = Field(
        "memory://",
        description="The scheme selects the broker. memory:// keeps the log in this process, sqlite:// on disk, the "
        "others in an engine that processes share.",
        repr=False,  # the URL may contain a password
    )
    timeout_seconds: float = Field(
        DEFAULT_TIMEOUT_SECONDS,
        gt=0,
        le=300,
        description="A publish gets 503 when the broker has not accepted it within this time.",
    )
    required_for_ready: bool = Field(
        False,
        description="Whether /ready is 503 while the broker is away. By default /ready is 200 with the status "
        "degraded, because all processes lose the broker at the same moment and still serve new streams.",
    )

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, url: str) -> str:
        if not re.match(r"[a-z][a-z0-9+.-]*://", url):
            raise ValueError("expected scheme://..., such as memory://")
        return url


class Config(BaseModel):
    """The whole configuration. It never changes in place: a reload loads a new one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: ServerSettings = ServerSettings()
    cors: CorsSettings = CorsSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    limits: LimitSettings = LimitSettings()
    history: HistorySettings = HistorySettings()
    broker: BrokerSettings = BrokerSettings()
    sources: tuple[SourceSettings, ...] = ()
    auth: AuthSettings = AuthSettings()
    admin: AdminSettings = AdminSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        names = [source.label for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"got the name {twice[0]!r} more than once, expected one of its own for each: set name")
        return sources


_CATALOGUE = Catalogue(Config, environment_prefix=ENVIRONMENT_PREFIX)


@dataclass(frozen=True)
class Loaded:
    """A valid configuration, its warnings, and the origin of each value."""

    config: Config
    # Warnings for the operator; none of them prevents a start.
    warnings: tuple[str, ...]
    # Dotted key to "default", "file conf/x.toml", "environment QGSTREAM_...", or "flag --port".
    came_from: Mapping[str, str]

    def effective(self) -> Iterator[tuple[str, object, str]]:
        """Return every key, its value as plain JSON without secrets, and its origin."""
        for key, value in values(self.config):
            yield key.name, key.visible(value), self.came_from[key.name]


def values(config: Config) -> Iterator[tuple[Key, object]]:
    """Return every key and its value, including secrets. `Key.visible` returns the part of a value that may be
    shown."""
    for name, key in _CATALOGUE.keys.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        yield key, value


def load(
    path: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None,
    *, is_development: bool = False,
) -> Loaded:  # fmt: skip
    """Read the file, then the environment, then the flags (dotted key to value), each over the one before. The settings
    of `--dev` (`is_development`) come before them all.

    Without a path, `QGSTREAM_CONFIG` in the environment names the file. Lists in the environment are JSON or separated
    by commas. Text among the flags is read as a TOML value, or else as it stands. Raises `ConfigError` with every
    problem found.
    """
    environ = {} if environ is None else environ
    reading = Reading(Config, _CATALOGUE)
    for key, value in development.SETTINGS.items() if is_development else ():
        reading.read_flag(key, value, "--dev")
    if path is None and environ.get(ENVIRONMENT_FILE):
        path = Path(environ[ENVIRONMENT_FILE])
    if path is not None:
        reading.read_file(path)
    reading.read_environment(environ, ignore=[ENVIRONMENT_FILE, *_OF_CLIENTS])
    for key, value in ({} if flags is None else flags).items():
        if (section := re.split(r"[.[]", key)[0]) in _NOT_BY_FLAG:
            reading.problems.append(f"flag --set {key}: {_NOT_BY_FLAG[section]}")
        else:
            reading.read_flag(key, value, FLAGS.get(key, f"--set {key}"))
    config = reading.finish()
    _check_limited_keys(config, reading)
    if config.server.reuse_port and config.broker.url.startswith("memory:"):
        reading.warnings.append(
            f"server.reuse_port: got true with broker.url = {config.broker.url!r}, expected a broker that processes "
            "share: an event published to one process will not reach the streams of another"
        )
    server = config.server
    is_local = server.host == "localhost" or is_loopback(server.host)
    if is_local and server.trusted_proxies and not server.allowed_hosts:
        reading.warnings.append(
            f"server.allowed_hosts: got none with server.host = {server.host!r} and server.trusted_proxies, expected "
            "the names by which clients reach the proxy: requests with another Host than localhost are refused"
        )
    if not is_local and any(reading.found[key].source == "flag --dev" for key in _DEV_KEYS if key in reading.found):
        reading.warnings.append(
            f"--dev: got server.host = {server.host!r} with the keys of --dev, expected a loopback address: the keys "
            "are known to everybody; set auth.publish_keys and auth.admin_keys"
        )
    found = reading.found
    came_from = {name: found[name].source if name in found else "default" for name in _CATALOGUE.keys}
    return Loaded(config, tuple(reading.warnings), came_from)


def _check_limited_keys(config: Config, reading: Reading[Config]) -> None:
    # A misspelt name would leave the key without a limit.
    known = config.auth.publish_keys
    source = reading.found["limits.per_key"].source if config.limits.per_key else ""
    problems = [
        f"{source}: limits.per_key.{name[:100]}: no key in auth.publish_keys has this name{did_you_mean(name, known)}"
        for name in config.limits.per_key
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
