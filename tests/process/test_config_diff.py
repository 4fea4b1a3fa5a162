"""What differs between two configurations is named, and no secret is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qgstream.auth.authenticator import Authenticator
from qgstream.process.config import Config, values
from qgstream.process.config_diff import FIXED, Changes, Side, between

SECRET = "hush-hush-hush-hush-hush-hush-hush-hush"


def side(**sections: Any) -> Side:
    config = Config.model_validate(sections)
    return Side.of(config, Authenticator(config.auth))


def said(old: dict[str, Any], new: dict[str, Any]) -> tuple[Changes, str]:
    changes = between(side(**old), side(**new))
    text = json.dumps(changes.document()) + "\n".join(changes.lines()) + repr(changes)
    assert "hush" not in text
    return changes, text


def test_nothing() -> None:
    changes, _ = said({}, {})
    assert not changes
    assert list(changes.lines()) == []


def test_a_setting_with_both_values() -> None:
    changes, _ = said({}, {"limits": {"max_connections": 20000}, "cors": {"allow_origins": ["https://a.example"]}})
    assert changes.document()["changes"] == {
        "cors.allow_origins": {"old": [], "new": ["https://a.example"]},
        "limits.max_connections": {"old": 10000, "new": 20000},
    }
    assert list(changes.lines()) == [
        'cors.allow_origins: [] -> ["https://a.example"]', "limits.max_connections: 10000 -> 20000"
    ]  # fmt: skip


def test_what_needs_a_restart_is_marked() -> None:
    changes, _ = said({}, {"server": {"port": 1}, "drain": {"seconds": 3}})
    assert list(changes.lines()) == ["server.port: 8000 -> 1  [needs a restart]", "drain.seconds: 20.0 -> 3.0"]
    assert {key.name for key, _ in values(Config())} >= set(FIXED)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ({"broker": {"url": "redis://user:hush1@h"}}, {"broker": {"url": "redis://user:hush2@h"}}, "broker.url"),
        (
            {"auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}}},
            {"auth": {"jwt": {"algorithms": ["HS256"], "secret": f"{SECRET}2"}}},
            "auth.jwt.secret",
        ),
        (
            {"sources": [{"use": "clock", "options": {"topic": "hush1"}}]},
            {"sources": [{"use": "clock", "options": {"topic": "hush2"}}]},
            "sources",
        ),
    ],
)
def test_a_secret_differs_and_is_not_shown(old: dict[str, Any], new: dict[str, Any], key: str) -> None:
    changes, text = said(old, new)
    (change,) = changes.settings
    assert (change.key, change.is_hidden) == (key, True)
    assert "(they differ in a part that is not shown)" in text
    assert changes.document()["changes"][key]["secret_changed"] is True  # type: ignore[index]


def test_keys_are_named() -> None:
    changes, _ = said(
        {"auth": {"publish_keys": {"orders": "hush1", "a.b": "hush2"}, "admin_keys": ["hush3", "hush4"]}},
        {"auth": {"publish_keys": {"orders": ["hush5", "hush1"]}, "admin_keys": ["hush4"]}},
    )
    assert changes.settings == ()
    assert changes.keys_added == ("auth.publish_keys.orders",)
    assert changes.keys_revoked == ("auth.admin_keys.key-1", "auth.publish_keys.a.b")
    assert "auth.publish_keys.a.b: a key was revoked" in list(changes.lines())


def test_a_publish_key_that_becomes_an_admin_key_is_revoked() -> None:
    changes, _ = said({"auth": {"publish_keys": {"x": "hush1"}}}, {"auth": {"admin_keys": {"x": "hush1"}}})
    assert (changes.keys_revoked, changes.keys_added) == (("auth.publish_keys.x",), ("auth.admin_keys.x",))


def test_a_new_name_for_a_key_is_a_change_of_the_setting() -> None:
    changes, _ = said({"auth": {"publish_keys": {"x": "hush1"}}}, {"auth": {"publish_keys": {"y": "hush1"}}})
    assert [change.key for change in changes.settings] == ["auth.publish_keys"]
    assert (changes.keys_added, changes.keys_revoked) == ((), ())


def test_files_with_other_contents(tmp_path: Path) -> None:
    secret, key = tmp_path / "secret", tmp_path / "key"
    certificate = tmp_path / "tls.crt"
    for path in (secret, key, certificate):
        path.write_text(SECRET)
    sections = {
        "server": {"certfile": str(certificate), "keyfile": str(certificate)},
        "auth": {
            "publish_keys": {"ci": {"file": str(key)}},
            "jwt": {"algorithms": ["HS256"], "secret": {"file": str(secret)}},
        },
    }
    old = side(**sections)
    assert not between(old, side(**sections))
    for path in (secret, key, certificate):
        path.write_text(f"{SECRET}2")
    changes = between(old, side(**sections))
    assert changes.files == ("server.certfile", "server.keyfile", "auth.jwt.secret")
    assert (changes.keys_added, changes.keys_revoked) == (("auth.publish_keys.ci",), ("auth.publish_keys.ci",))
    certificate.unlink()
    assert "server.certfile" in between(old, side(**sections)).files


def test_a_long_value_is_cut_in_the_log() -> None:
    origins = [f"https://{number}.example" for number in range(200)]
    changes, _ = said({}, {"cors": {"allow_origins": origins}})
    entry = changes.document()["changes"]["cors.allow_origins"]  # type: ignore[index]
    assert len(entry["new"]) == 503
