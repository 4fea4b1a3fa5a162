"""What a person at a terminal is told: where to click, with which keys, and how long the end takes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qgstream.process.banner import banner, farewell
from qgstream.process.config import load
from qgstream.terminal import NO_COLOURS


def shown(*, port: int = 8000, admin_port: int | None = None, is_development: bool = False, **flags: Any) -> str:
    settings = {name.replace("__", "."): value for name, value in flags.items() if not name.startswith("auth")}
    environ = {f"QGSTREAM_{name.upper()}": value for name, value in flags.items() if name.startswith("auth")}
    config = load(None, environ, settings, is_development=is_development).config
    return banner(config, port=port, admin_port=admin_port, colours=NO_COLOURS)


def links(text: str) -> list[str]:
    return re.findall(r"https?://\S+", text)


def test_what_to_click() -> None:
    assert links(shown()) == [f"http://127.0.0.1:8000{path}" for path in ("/", "/admin", "/docs")]
    assert links(shown(port=7, admin_port=9))[1] == "http://127.0.0.1:9/admin"
    assert links(shown(server__host="0.0.0.0"))[0] == "http://127.0.0.1:8000/"
    assert links(shown(server__host="::"))[0] == "http://[::1]:8000/"
    secure = shown(server__certfile="/c", server__keyfile="/k", admin__port=9, admin_port=9)
    assert links(secure)[:2] == ["https://127.0.0.1:8000/", "http://127.0.0.1:9/admin"]


def test_the_keys_of_development_are_shown() -> None:
    text = shown(is_development=True)
    assert "publish key  dev\n" in text
    assert "admin key    dev-admin\n" in text
    assert "Ctrl-C to stop" in text


def test_no_other_key_is_shown() -> None:
    text = shown(
        auth__publish_keys='{"shop": ["hush-1", "hush-2"], "file": {"file": "/run/k"}}',
        auth__admin_keys='{"a": "hush-3"}',
    )
    assert "hush" not in text
    assert "/run/k" not in text
    assert "publish key  the one named shop, the one named file\n" in text


def test_without_keys_it_says_what_to_set() -> None:
    text = shown()
    assert "--dev" in text
    assert "auth.publish_keys" in text
    assert "auth.admin_keys" in text
    token = shown(auth__jwt__secret="x" * 32, auth__jwt__algorithms="HS256")
    assert "auth.jwt" in token
    assert "auth.publish_keys" not in token


@pytest.mark.parametrize(
    ("streams", "seconds", "said"),
    [
        (0, 20.0, None),
        (5, 2.0, None),
        (1, 2.5, "draining 1 stream over 2.5 s; Ctrl-C again to end now"),
        (5, 20.0, "draining 5 streams over 20 s; Ctrl-C again to end now"),
    ],
)
def test_a_long_end_is_announced(streams: int, seconds: float, said: str | None) -> None:
    assert farewell(streams, seconds) == said
