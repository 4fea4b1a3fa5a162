"""Parsing a broker's URL: its address, its credentials, and the options in its query. Pure.

An engine declares its options as a `Section`. Problems of a URL are raised as `ConfigError`, without credentials.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, ValidationError

from qgstream.errors import ConfigError
from qgstream.net.certificates import load_cert_chain
from qgstream.settings import Section
from qgstream.validation import describe

_S = TypeVar("_S", bound=Section)


class TlsOptions(Section):
    """The certificate files in a URL's query."""

    cafile: str | None = Field(None, description="Authorities to trust instead of the system's.")
    certfile: str | None = Field(None, description="Client certificate.")
    keyfile: str | None = Field(None, description="Key of the client certificate, unless it is in the same file.")

    def context(self, scheme: str, *, plain: str, with_tls: str) -> ssl.SSLContext | None:
        """Return the TLS context for the engine; None for the scheme `plain`. Errors suggest the scheme `with_tls`.

        Raises `ConfigError` for certificates with `plain`, and for unusable files.
        """
        if scheme == plain:
            if self.cafile or self.certfile or self.keyfile:
                raise ConfigError([f"broker.url: got certificates for {plain}://, expected {with_tls}://"])
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile:
                load_cert_chain(context, self.certfile, self.keyfile)
        except OSError as error:
            raise ConfigError([f"broker.url: the certificates cannot be used: {error}"]) from error
        return context


@dataclass(frozen=True)
class Address:
    """The parts of a URL.

    `user`, `password` and `path` (without its first slash) are decoded. `hosts` has an entry for each host in the
    comma-separated list: a name or an address, and a port or None for the default port.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...]
    user: str
    password: str
    path: str
    query: str
    secrets: tuple[str, ...]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse a URL. Raises `ConfigError`."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError([f"broker.url: got a value that is not a URL: {error}"]) from None
        userinfo, _, netloc = parts.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        hosts = tuple(_host(parts.scheme, text) for text in netloc.split(","))
        secrets = {password, unquote(password)} if password else {user, unquote(user)}
        return cls(
            parts.scheme, hosts, unquote(user), unquote(password), unquote(parts.path[1:]), parts.query,
            tuple(secret for secret in secrets if secret),
        )  # fmt: skip

    @property
    def place(self) -> str:
        """The address for log lines and errors: no credentials, no options."""
        hosts = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
            for host, port in self.hosts
        )
        return f"{self.scheme}://{hosts}" + (f"/{self.path}" if self.path else "")


def _host(scheme: str, text: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise ConfigError([f"broker.url: got the host {text!r}, expected {scheme}://host or {scheme}://host:port"])
    return host, port


def read_options(query: str, options: type[_S]) -> _S:
    """Parse and validate the options in a URL's query. Raises `ConfigError` that names the invalid option."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options.model_fields:
            expected = ", ".join(options.model_fields)
            raise ConfigError([f"broker.url: got the option {name!r}, expected one of {expected}"])
        if name in given:
            raise ConfigError([f"broker.url: got the option {name!r} twice, expected it once"])
        given[name] = value
    try:
        return options.model_validate(given)
    except ValidationError as error:
        problems = [(".".join(map(str, details["loc"])), details) for details in error.errors(include_url=False)]
        raise ConfigError(
            [f"broker.url: {name}: {describe(details, repr(given.get(name, '')))}" for name, details in problems]
        ) from None
