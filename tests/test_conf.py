"""The files in conf/ are what they say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from qgstream.auth.authenticator import Authenticator, Credentials
from qgstream.cli.default_config import default_config
from qgstream.events.history import TopicHistory
from qgstream.process.config import Config, load
from qgstream.process.config_loading import Catalogue, field_names
from qgstream.sources.base import SourceSettings

CONF = Path(__file__).parent.parent / "conf"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.toml")), ids=lambda path: path.name)
def test_a_shipped_file_can_be_used(path: Path) -> None:
    loaded = load(path)
    Authenticator(loaded.config.auth)
    assert loaded.warnings == ()


def test_qgstream_toml_is_what_default_config_prints() -> None:
    assert (CONF / "qgstream.toml").read_text(encoding="utf-8") == default_config(), (
        "run: qgstream default-config > conf/qgstream.toml"
    )


def test_qgstream_toml_as_it_is_changes_nothing() -> None:
    assert load(CONF / "qgstream.toml").config == Config()


def test_qgstream_toml_names_every_option_with_its_default(tmp_path: Path) -> None:
    lines = default_config().splitlines()
    # The blocks of lists of tables would bring such tables.
    text = re.sub(r"^#\[\[.*?(?=^#?\[\w)", "", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    with_default = [
        line.removeprefix("#") for line in text.splitlines()
        if re.match(r'(#\w+ =|\[|#    "|#\])(?!.*# not set by default)', line)
    ]  # fmt: skip
    # The keys of a table that is not set by default would bring that table.
    claims = with_default.index("leeway_seconds = 10")
    del with_default[claims : claims + 2]
    path = tmp_path / "all.toml"
    path.write_text("\n".join(with_default), encoding="utf-8")
    loaded = load(path)
    assert loaded.config == Config()
    everything = tomllib.loads("\n".join(re.sub(r'^#(?=\w+ =|\[|    "|\])', "", line) for line in lines))
    (source,) = everything.pop("sources")
    (topic,) = everything["history"]["topics"]
    named = {f"{section}.{key}" for section, table in everything.items() for key in table if key != "jwt"}
    named |= {f"auth.jwt.{key}" for key in everything["auth"]["jwt"]} | {"sources"}
    assert named == set(Catalogue(Config, environment_prefix="").keys)
    assert source.keys() == field_names(SourceSettings).keys()
    assert topic.keys() == field_names(TopicHistory).keys()


def test_dev_toml_is_for_this_machine_alone() -> None:
    config = load(CONF / "dev.toml").config
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)
    assert config.cors.allow_origins == ("*",)
    assert config.log.env == "development"
    whom = Authenticator(config.auth)
    assert whom.authenticate(Credentials(authorization="Bearer dev"), now=0).may_publish("anything")
    whom.authenticate(Credentials(authorization="Bearer dev-admin"), now=0).require_admin()


def test_production_toml_is_closed() -> None:
    config = load(CONF / "production.toml").config
    assert "*" not in config.cors.allow_origins
    assert (config.auth.publish_keys, config.auth.admin_keys) == ({}, {})
    assert (config.admin.host, config.admin.port) == ("127.0.0.1", 9000)
    assert config.limits.max_connections_per_ip > 0
    assert config.limits.connect_rate_per_ip > 0
    assert config.drain.seconds > 0
