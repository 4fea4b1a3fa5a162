"""The URL options of RabbitMQ. Pure."""

from __future__ import annotations

from pydantic import Field
from yarl import URL

from qgstream.brokers.options import Address, TlsOptions
from qgstream.limits import MIB

NAME = "qgstream"
PORTS = {"amqp": 5672, "amqps": 5671}


class Options(TlsOptions):
    """The options in the query of the URL."""

    stream: str = Field(NAME, min_length=1, max_length=200, description="The queue with the log, a stream.")
    exchange: str = Field(
        NAME, min_length=1, max_length=200, description="A topic exchange; all of its messages go to the log."
    )
    max_bytes: int | None = Field(
        None, gt=0, description="Replaces history.max_bytes, for a stream that the server creates."
    )
    max_age_seconds: float | None = Field(None, gt=0, description="Likewise, replaces history.max_age_seconds.")
    max_event_bytes: int = Field(MIB, gt=0, description="The server skips larger messages of other publishers.")
    users: str = Field("", description="RabbitMQ users of the other servers of this log, separated by commas.")


def urls(address: Address) -> list[URL]:
    """Return one URL for each host. As usual for RabbitMQ, no path, or `/`, means the virtual host `/`."""
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
    """Return the user of the connection; `guest` by default."""
    return address.user or "guest"


def users(address: Address, options: Options) -> frozenset[str]:
    """Return the users of this log's servers: the user of the URL, and the users in its query."""
    named = (name.strip() for name in options.users.split(","))
    return frozenset({user_of(address), *filter(None, named)})
