"""Taking a broker's URL apart."""

from __future__ import annotations

import pytest
from pydantic import Field

from qgstream.brokers.options import Address, read_options
from qgstream.errors import ConfigError
from qgstream.settings import Section


class Options(Section):
    stream: str = Field("events", min_length=1)
    max_events: int | None = Field(None, ge=1)


def test_an_address_is_taken_apart() -> None:
    address = Address.parse("engine+tls://us%40er:p%3Aa%2Fss@one:1,[::1]:2,three/a%2Fb/c?stream=x#no")
    assert (address.scheme, address.hosts) == ("engine+tls", (("one", 1), ("::1", 2), ("three", None)))
    assert (address.user, address.password, address.path) == ("us@er", "p:a/ss", "a/b/c")
    assert address.query == "stream=x"
    assert set(address.secrets) == {"p%3Aa%2Fss", "p:a/ss"}
    assert address.place == "engine+tls://one:1,[::1]:2,three/a/b/c"


def test_a_token_without_a_password_is_a_secret() -> None:
    assert Address.parse("engine://token@host").secrets == ("token",)
    assert Address.parse("engine://host").secrets == ()


@pytest.mark.parametrize("netloc", ["", ":1", "host:port", "host:99999", "one,,two", "secret@", "[::1"])
def test_an_address_without_a_host_is_refused(netloc: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as refused:
        Address.parse(f"engine://{netloc}/")
    assert isinstance(refused.value, ConfigError)
    assert str(refused.value).startswith("broker.url: got ")
    assert "secret" not in str(refused.value)


def test_options_are_checked() -> None:
    assert read_options("", Options) == Options()
    assert read_options("max_events=5&stream=%C3%A9", Options) == Options(stream="é", max_events=5)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("steam=x", "got the option 'steam', expected one of stream, max_events"),
        ("max_events=x", "max_events: got 'x', expected a valid integer"),
        ("max_events=0", "max_events: got '0', expected greater than or equal to 1"),
        ("stream=", "stream: got '', expected at least 1 character"),
        ("stream=a&stream=b", "got the option 'stream' twice, expected it once"),
    ],
)
def test_an_option_that_cannot_be_is_named(query: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_options(query, Options)
    assert refused.value.problems == [f"broker.url: {said}"]
