"""Checks whether `serve` will find what it needs. Each check tries one thing, and says what was found and what to
change.

`fails` means that `serve` would refuse to start, or that no client could be served: an expired certificate, a file that
allows no events at all, or a placeholder or mark of a shipped file. A `warning` may be intended.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qgstream.auth.authenticator import Authenticator, secrets_of
from qgstream.auth.jwks import KeySet
from qgstream.auth.secrets import load_secret, read_file
from qgstream.brokers.base import open_broker
from qgstream.brokers.sqlite.file import InUse
from qgstream.errors import ConfigError, Unavailable
from qgstream.logs import log
from qgstream.net.addresses import is_loopback
from qgstream.net.certificates import validity
from qgstream.process.capacity import Finding, Verdict
from qgstream.process.config import Config, Loaded
from qgstream.process.listening import owner, place
from qgstream.process.server import tls_context
from qgstream.sources.base import open_sources

# Let's Encrypt renews 30 days before the end: with less than half of that left, the renewal does not work.
WARN_DAYS = 14
_DAY = 86_400
# The check does not wait longer for an engine, even if `broker.timeout_seconds` allows publishes more time.
_MOST_SECONDS = 10.0
# A file from the future means that the clock is behind. Clocks of file servers differ by seconds.
_AHEAD_SECONDS = 300

# RFC 2606, 3: nobody can own these names. The shipped files and pages use them as placeholders for the operator's
# names.
_PLACEHOLDER = re.compile(r"\bexample\.(?:com|net|org)\b|\bCHANGE")
# Brokers to which only this process writes.
_OWN_LOGS = ("memory", "sqlite")
# Keys of the documentation, and of conf/dev.toml.
_PUBLIC_KEYS = frozenset({
    "a-long-random-string", "the-new-one", "the-old-one", "at least 32 bytes, from a random source"
})  # fmt: skip
_DEV_KEYS = frozenset({"dev", "dev-admin"})
_MARK = re.compile(r"^\s*#\s*CHANGE\b")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z_][\w.-]*)\s*=|^\s*\[+([\w.-]+)\]")


def configuration(loaded: Loaded, path: Path | None, now: float, *, lenient: bool) -> list[Finding]:
    """Return the findings about the configuration and its files, without the network. `now` is in Unix seconds.

    `lenient`: a problem that does not prevent a start is a warning, as for a check before a start or a reload.
    """
    config = loaded.config
    bad: Verdict = "warning" if lenient else "fails"
    findings: list[Finding] = []
    tries: tuple[Callable[[], object], ...] = (
        lambda: Authenticator(config.auth),
        lambda: tls_context(config.server),
        lambda: open_broker(config.broker.url),
        lambda: open_sources(config.sources),
    )
    for attempt in tries:
        try:
            attempt()
        except ConfigError as error:
            findings += map(_problem, error.problems)
    certfile = config.server.certfile
    if certfile is not None and not any(finding.check.startswith("server.certfile") for finding in findings):
        findings.append(_certificate(certfile, now, lenient=lenient))
    findings += _keys(config, "warning" if path is None else bad)
    findings += [Finding(check, bad, found, change) for check, found, change in (*_placeholders(loaded), *_marks(path))]
    files = [file for file in (path, certfile, config.server.keyfile) if file is not None]
    return [*findings, *_clock(files, now)]


def network(config: Config, broken: Sequence[Finding] = ()) -> list[Finding]:
    """Return the findings about the network and this machine: the broker, the issuer's keys, the ports. Settings for
    which `broken` has problems are not tried."""
    names = {part.strip() for finding in broken if finding.verdict == "fails" for part in finding.check.split(",")}
    return [*asyncio.run(_engines(config, names)), *_ports(config)]


def _problem(problem: str) -> Finding:
    check, colon, found = problem.partition(": ")
    return Finding(check, "fails", found) if colon else Finding("configuration", "fails", problem)


# Files.


def _certificate(path: Path, now: float, *, lenient: bool) -> Finding:
    check = "server.certfile"
    try:
        begins, ends = validity(path)
    except (OSError, ValueError) as error:
        return Finding(check, "unknown", f"{path}: its dates cannot be read: {error}")
    days = (ends - now) / _DAY
    renew = "renew it; a reload loads the new one"
    if ends <= now:
        found = f"{path} expired on {_date(ends)}: clients refuse it"
        return Finding(check, "warning" if lenient else "fails", found, renew)
    if begins > now:
        found = f"{path} is valid from {_date(begins)}, and it is {_date(now)}: clients refuse it"
        return Finding(check, "warning" if lenient else "fails", found, "wait, or set the clock")
    found = f"{path} is valid until {_date(ends)}, {int(days)} days"
    if days < WARN_DAYS:
        return Finding(check, "warning", found, renew)
    return Finding(check, "ok", found)


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def _keys(config: Config, bad: Verdict) -> Iterator[Finding]:
    auth = config.auth
    brings = config.sources or config.broker.url.partition(":")[0] not in _OWN_LOGS
    if auth.publish_keys or auth.jwt is not None:
        tokens = "no tokens" if auth.jwt is None else "tokens"
        yield Finding("auth.publish_keys", "ok", f"{len(auth.publish_keys)} names of keys, {tokens}")
    else:
        yield Finding(
            "auth.publish_keys", "warning" if brings else bad,
            f"there is none, and no auth.jwt: {'nobody can publish over HTTP' if brings else 'no event can ever come'}",
            "set a key" + (", unless all events come from sources or through the broker" if brings else ""),
        )  # fmt: skip
    if auth.admin_keys:
        yield Finding("auth.admin_keys", "ok", f"{len(auth.admin_keys)} names of keys")
    else:
        yield Finding("auth.admin_keys", "warning", "there is none: nobody can use /admin", "set a key")


def _placeholders(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    """Find the settings with a value of an example, and say what to do."""
    for key, value, _ in loaded.effective():
        found = _PLACEHOLDER.search(str(value))
        if found:
            yield key, f"has {found[0]!r}, which is a placeholder", "put your own value there"
    config = loaded.config
    known = _PUBLIC_KEYS if is_loopback(config.server.host) else _PUBLIC_KEYS | _DEV_KEYS
    for where, secret in secrets_of(config.auth):
        # An unreadable file is a problem that was found already.
        with contextlib.suppress(ConfigError):
            text = load_secret(secret, where=where, read_file=read_file).decode(errors="replace")
            if text in known or re.search(r"change.?me|\bCHANGE", text, re.IGNORECASE):
                yield where, "is a key from the documentation", "make one: openssl rand -base64 32"


def _marks(path: Path | None) -> Iterator[tuple[str, str, str]]:
    """Find the lines of the file that are still marked `# CHANGE`, as in conf/production.toml."""
    lines: list[str] = []
    if path is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    section = ""
    marked: int | None = None
    for number, line in enumerate(lines, 1):
        if _MARK.match(line):
            marked = number
        elif found := _ASSIGNMENT.match(line):
            key, table = found.groups()
            section = table or section
            if marked is not None and key:
                name = f"{section}.{key}".lstrip(".")
                said = f"line {marked} of {path} is still marked CHANGE"
                yield name, said, "decide on the value, and delete the mark"
            marked = None if key else marked


def _clock(files: Sequence[Path], now: float) -> Iterator[Finding]:
    for file in files:
        with contextlib.suppress(OSError):
            changed = file.stat().st_mtime
            if changed > now + _AHEAD_SECONDS:
                found = f"it is {_date(now)}, and {file} was changed on {_date(changed)}"
                yield Finding(
                    "clock", "warning", found, "set the clock (timedatectl): tokens and certificates depend on it"
                )
                return


# The network.


async def _engines(config: Config, broken: set[str]) -> list[Finding]:
    findings = []
    if "broker.url" not in broken:
        findings += await _broker(config)
    jwt = config.auth.jwt
    if jwt is not None and jwt.jwks_url is not None and not any(name.startswith("auth.") for name in broken):
        findings.append(await _key_set(config, jwt.jwks_url))
    return findings


async def _broker(config: Config) -> list[Finding]:
    check, scheme = "broker.url", config.broker.url.partition(":")[0]
    if scheme == "memory":
        return [Finding(check, "ok", "memory: the log ends with the process")]
    broker = open_broker(config.broker.url, timeout_seconds=min(_MOST_SECONDS, config.broker.timeout_seconds))
    with _heard() as heard:
        try:
            await broker.check()
        except InUse as error:
            return [_in_use(check, f"the log {error}", int(error.pid) if error.pid.isdecimal() else None)]
        except (OSError, Unavailable) as error:
            change = "start it, or correct the URL" if scheme != "sqlite" else "see the folder and its user"
            return [Finding(check, "fails", str(error), change)]
    warnings = [Finding(check, "warning", str(getattr(record, "reason", record.getMessage()))) for record in heard]
    return [Finding(check, "ok", f"{scheme} answers" if scheme != "sqlite" else "the log can be opened"), *warnings]


async def _key_set(config: Config, url: str) -> Finding:
    key_set = KeySet(url, Authenticator(config.auth).replace_jwks)
    with _heard() as heard:
        key_set.start()
        await key_set.tried()
        key_set.stop()
    reasons = [str(getattr(record, "reason", "")) for record in heard]
    if reasons:
        change = "requests with tokens get 503 until it can be fetched"
        return Finding("auth.jwt.jwks_url", "fails", f"{url}: {reasons[0]}", change)
    return Finding("auth.jwt.jwks_url", "ok", f"{url}: has a key that fits")


class _Hearing(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextlib.contextmanager
def _heard() -> Iterator[list[logging.LogRecord]]:
    """Collect the log lines of the server's parts, which would otherwise go to standard error."""
    records: list[logging.LogRecord] = []
    handler, propagates = _Hearing(records), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield records
    finally:
        log.propagate = propagates
        log.removeHandler(handler)


# The ports.


def _ports(config: Config) -> Iterator[Finding]:
    wanted = [("server.port", config.server.host, config.server.port, config.server.reuse_port)]
    if config.admin.port and config.admin.port == config.server.port:
        yield Finding("admin.port", "fails", f"{config.admin.port} is server.port, too", "set another one")
    elif config.admin.port:
        wanted.append(("admin.port", config.admin.host, config.admin.port, False))
    with contextlib.ExitStack() as stack:
        for check, host, port, reuse_port in wanted:
            at = place(host, port)
            try:
                _bind(stack, host, port, reuse_port=reuse_port)
            except socket.gaierror as error:
                yield Finding(check, "fails", f"{at}: the name cannot be resolved: {error.strerror}")
            except OSError as error:
                yield _taken(check, at, port, error)
            else:
                yield Finding(check, "ok", f"{at} is free" if port else f"{host}: any free port")


def _bind(stack: contextlib.ExitStack, host: str, port: int, *, reuse_port: bool) -> None:
    """Bind as the server does, without listening: no client could be served at this moment."""
    for family, kind, protocol, _, address in set(
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ):
        bound = stack.enter_context(socket.socket(family, kind, protocol))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)


def _taken(check: str, at: str, port: int, error: OSError) -> Finding:
    if error.errno == errno.EADDRINUSE:
        pid, who = owner(port)
        return _in_use(check, f"{at} is in use by {who}", pid)
    change = ""
    if error.errno == errno.EACCES:
        change = "allow ports below 1024 (CAP_NET_BIND_SERVICE), or take another one"
    return Finding(check, "fails", f"{at} cannot be listened on: {error.strerror or error}", change)


def _in_use(check: str, found: str, pid: int | None) -> Finding:
    """A server that already runs with this configuration is no problem: the check is for its reload or restart."""
    command = ""
    if pid is not None:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if re.search(r"\bqgstream\b.* serve\b", command, re.DOTALL):
        return Finding(check, "ok", f"{found}: a qgstream server that is already running")
    return Finding(check, "fails", found, "stop it, or take another one")
