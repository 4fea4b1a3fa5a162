"""What the server says to a person at a terminal, besides its log: where to click, and how long its end takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import SecretStr

from qgstream.auth.authenticator import Secrets
from qgstream.process.config import Config
from qgstream.process.development import ADMIN_KEY, PUBLISH_KEY
from qgstream.terminal import Colours, escape
from qgstream.version import __version__

# Keys that stand in the documentation. Only these are shown.
_PUBLIC_KEYS = frozenset({PUBLISH_KEY, ADMIN_KEY})
# An end that takes longer is announced: a person would take the server for one that hangs.
PATIENCE_SECONDS = 2.0


def banner(config: Config, *, port: int, admin_port: int | None, colours: Colours) -> str:
    """The lines for a server that has started. `port` and `admin_port` are those that it listens on."""
    public = _url("http" if config.server.certfile is None else "https", config.server.host, port)
    operator = public if admin_port is None else _url("http", config.admin.host, admin_port)
    links = [
        (f"{public}/", "the demo page"),
        (f"{operator}/admin", "the dashboard"),
        (f"{public}/docs", "the HTTP interface"),
    ]
    width = max(len(url) for url, _ in links)
    lines = [f"{colours.bold}qgstream {__version__}{colours.plain} is ready. Ctrl-C to stop", ""]
    lines += [f"  {colours.bold}{url:{width}}{colours.plain}  {what}" for url, what in links]
    lines += ["", *(f"  {line}" for line in _keys(config)), ""]
    return "\n".join(lines)


def _url(scheme: str, host: str, port: int) -> str:
    # What listens everywhere is reached here.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else escape(host)}:{port}"


def _keys(config: Config) -> Iterator[str]:
    auth = config.auth
    if auth.publish_keys:
        yield f"publish key  {_named(auth.publish_keys.items())}"
    elif auth.jwt is not None:
        yield "publish with a token that grants it (auth.jwt)"
    else:
        yield "nobody can publish over HTTP: there is no publish key."
        yield "Start with --dev, or set auth.publish_keys (QGSTREAM_AUTH__PUBLISH_KEYS)"
    if auth.admin_keys:
        yield f"admin key    {_named(auth.admin_keys.items())}"
    else:
        yield "nobody can use /admin: there is no admin key (auth.admin_keys)"


def _named(keys: Iterable[tuple[str, Secrets]]) -> str:
    """The keys that everybody knows, and the names of the others."""
    return ", ".join(_public(secrets) or f"the one named {name}" for name, secrets in keys)


def _public(secrets: Secrets) -> str | None:
    for secret in secrets if isinstance(secrets, Sequence) else (secrets,):
        if isinstance(secret, SecretStr) and secret.get_secret_value() in _PUBLIC_KEYS:
            return secret.get_secret_value()
    return None


def farewell(streams: int, seconds: float) -> str | None:
    """What is said after the first Ctrl-C when the drain of `streams` takes `seconds`; None for a short one."""
    if not streams or seconds <= PATIENCE_SECONDS:
        return None
    noun = "stream" if streams == 1 else "streams"
    return f"draining {streams} {noun} over {seconds:g} s; Ctrl-C again to end now"
