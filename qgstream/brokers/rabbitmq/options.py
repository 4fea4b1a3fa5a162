"""What the URL of RabbitMQ says. Pure, but for reading certificates."""

from __future__ import annotations

import ssl

from pydantic import Field
from yarl import URL

from qgstream.brokers.options import Address
from qgstream.errors import ConfigError
from qgstream.limits import MIB
from qgstream.net.certificates import load_cert_chain
from qgstream.settings import Section

NAME = "qgstream"
PORTS = {"amqp": 5672, "amqps": 5671}


class Options(Section):
    """The query of the URL."""

    stream: str = Field(NAME, min_length=1, max_length=200, description="The queue that is the log.")
    exchange: str = Field(
        NAME, min_length=1, max_length=200, description="A topic exchange; all of it goes to the log."
    )
    max_bytes: int | None = Field(None, gt=0, description="Instead of history.max_bytes, when the stream is made.")
    max_age_seconds: float | None = Field(None, gt=0, description="Likewise, instead of history.max_age_seconds.")
    max_event_bytes: int = Field(MIB, gt=0, description="Larger messages of other publishers are skipped.")
    users: str = Field("", description="Users of RabbitMQ that other servers of this log have, separated by commas.")
    cafile: str | None = Field(None, description="Certificates to know the server by, instead of the system's.")
    certfile: str | None = Field(None, description="A certificate to show the server.")
    keyfile: str | None = Field(None, description="Its key, unless it is in the same file.")


def urls(address: Address) -> list[URL]:
    """One for each host. RabbitMQ's own: no path, or `/`, is the virtual host `/`."""
    path = "/" + (address.path or "/").replace("/", "%2F")
    user, password = user_of(address), address.password if address.user else "guest"
    return [
        URL.build(
            scheme=address.scheme, user=user, password=password, host=host, port=port or PORTS[address.scheme],
            path=path, query={"name": "qgstream"},
        )
        for host, port in address.hosts
    ]  # fmt: skip


def user_of(address: Address) -> str:
    """The user of the connection; `guest` unless given."""
    return address.user or "guest"


def users(address: Address, options: Options) -> frozenset[str]:
    """The users that servers of this log have: that of the URL, and those that it names."""
    named = (name.strip() for name in options.users.split(","))
    return frozenset({user_of(address), *filter(None, named)})


def tls_context(address: Address, options: Options) -> ssl.SSLContext | None:
    """How to know the server, and be known to it. Raises `ConfigError`."""
    if address.scheme == "amqp":
        if options.cafile or options.certfile or options.keyfile:
            raise ConfigError(["broker.url: got certificates for amqp://, expected amqps://"])
        return None
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        if options.certfile:
            load_cert_chain(context, options.certfile, options.keyfile)
    except OSError as error:
        raise ConfigError([f"broker.url: the certificates cannot be used: {error}"]) from error
    return context
