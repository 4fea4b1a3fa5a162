"""What the URL of RabbitMQ says. Pure."""

from __future__ import annotations

from pydantic import Field
from yarl import URL

from qgstream.brokers.options import Address, TlsOptions
from qgstream.limits import MIB

NAME = "qgstream"
PORTS = {"amqp": 5672, "amqps": 5671}


class Options(TlsOptions):
    """The query of the URL."""

    stream: str = Field(NAME, min_length=1, max_length=200, description="The queue that is the log.")
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
