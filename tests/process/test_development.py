"""`--dev` is conf/dev.toml for those who have the package alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgstream.process.config import load

DEV_TOML = Path(__file__).parents[2] / "conf" / "dev.toml"


def test_it_is_the_file() -> None:
    assert load(is_development=True).config == load(DEV_TOML).config


def test_everything_else_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 1\n[drain]\nseconds = 3\n")
    loaded = load(path, {"QGSTREAM_DRAIN__SECONDS": "4"}, {"log.env": "mine"}, is_development=True)
    assert (loaded.config.server.port, loaded.config.drain.seconds, loaded.config.log.env) == (1, 4, "mine")
    assert loaded.came_from["auth.publish_keys"] == "flag --dev"
    assert loaded.came_from["server.port"] == f"file {path}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_it_is_quiet(host: str) -> None:
    assert load(None, {}, {"server.host": host}, is_development=True).warnings == ()


def test_known_keys_for_others_are_a_warning() -> None:
    (warning,) = load(None, {}, {"server.host": "0.0.0.0"}, is_development=True).warnings
    assert "the keys are known to everybody" in warning
    own = {"QGSTREAM_AUTH__PUBLISH_KEYS": "a", "QGSTREAM_AUTH__ADMIN_KEYS": "b"}
    assert load(None, own, {"server.host": "0.0.0.0"}, is_development=True).warnings == ()
