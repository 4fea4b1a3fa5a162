from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from qgstream.errors import ConfigError
from qgstream.process.config import Config, load

# A space, so that it cannot be the name of a key: a name may be shown.
SECRET = "hush hush"


def problems(*args: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args)
    return caught.value.problems


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_set_is_all_defaults() -> None:
    loaded = load()
    assert loaded.config == Config()
    assert (loaded.warnings, set(loaded.came_from.values())) == ((), {"default"})


@pytest.mark.parametrize(
    ("reuse_port", "url", "warned"),
    [(True, "memory://", True), (True, "redis://127.0.0.1:6379", False), (False, "memory://", False)],
)
def test_processes_that_share_a_port_and_no_log(reuse_port: bool, url: str, warned: bool) -> None:
    loaded = load(flags={"server.reuse_port": reuse_port, "broker.url": url})
    said = "server.reuse_port: got true with broker.url = 'memory://', expected a broker that processes share"
    assert [warning.partition(": an event")[0] for warning in loaded.warnings] == [said] * warned


def test_precedence_and_sources(tmp_path: Path) -> None:
    path = written(tmp_path, "[server]\nport = 1\nhost = '::1'\nreuse_port = true\n[limits]\nmax_connections = 1\n")
    environ = {"QGSTREAM_SERVER__PORT": "2", "QGSTREAM_SERVER__HOST": "127.0.0.2", "QGSTREAM_LOG__LEVEL": "debug"}
    loaded = load(path, environ, {"server.port": "3", "limits.max_connections": 3})
    server = loaded.config.server
    assert (server.port, server.host, server.reuse_port, loaded.config.log.level) == (3, "127.0.0.2", True, "debug")
    assert loaded.config.limits.max_connections == 3
    assert {key: source for key, source in loaded.came_from.items() if source != "default"} == {
        "server.port": "flag --port",
        "server.host": "environment QGSTREAM_SERVER__HOST",
        "server.reuse_port": f"file {path}",
        "limits.max_connections": "flag --set limits.max_connections",
        "log.level": "environment QGSTREAM_LOG__LEVEL",
    }


def test_the_variables_of_the_client_commands_are_known() -> None:
    assert load(None, {"QGSTREAM_PUBLISH_KEY": "hush", "QGSTREAM_TOKEN": "hush"}).warnings == ()


def test_the_environment_may_name_the_file_and_an_argument_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "[log]\nenv = 'here'\n")
    assert load(None, {"QGSTREAM_CONFIG": str(path)}).config.log.env == "here"
    assert load(path, {"QGSTREAM_CONFIG": "/nowhere"}).config.log.env == "here"
    assert load(path, {"QGSTREAM_CONFIG": "/nowhere"}).warnings == ()
    assert load(None, {"QGSTREAM_CONFIG": ""}).config == Config()
    assert problems(None, {"QGSTREAM_CONFIG": "/nowhere"}) == [
        "file /nowhere: cannot be read: No such file or directory"
    ]


def test_kubernetes_does_not_stop_a_start() -> None:
    # https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    environ = {
        "QGSTREAM_PORT": "tcp://10.0.0.11:80",
        "QGSTREAM_SERVICE_HOST": "10.0.0.11",
        "QGSTREAM_SERVICE_PORT": "80",
        "QGSTREAM_PORT_80_TCP": "tcp://10.0.0.11:80",
        "QGSTREAM_PORT_80_TCP_PROTO": "tcp",
        "QGSTREAM_PORT_80_TCP_PORT": "80",
        "QGSTREAM_PORT_80_TCP_ADDR": "10.0.0.11",
    }
    loaded = load(None, environ)
    assert loaded.config == Config()
    assert len(loaded.warnings) == len(environ)
    assert "environment QGSTREAM_PORT: unknown name, ignored; did you mean QGSTREAM_SERVER__PORT?" in loaded.warnings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"server.certfile": "a"}, "server: got certfile without keyfile, expected both (HTTPS) or neither"),
        ({"server.keyfile": "a"}, "server: got keyfile without certfile, expected both (HTTPS) or neither"),
        ({"server.port": "65536"}, "server.port: got '65536', expected less than or equal to 65535"),
        ({"server.host": ""}, "server.host: got '', expected at least 1 character"),
        (
            {"server.trusted_proxies": "::1,10.0.0.1/8"},
            "server.trusted_proxies[1]: got '10.0.0.1/8', expected an address or a network such as 10.0.0.0/8",
        ),
        ({"server.trusted_proxies": "proxy"}, "server.trusted_proxies[0]: got 'proxy', expected an address or"),
        (
            {"cors.allow_origins": "*", "cors.allow_credentials": "true"},
            'cors: got allow_credentials = true with allow_origins = ["*"], expected the exact origins',
        ),
        ({"cors.allow_origins": "*,https://a.example"}, 'cors.allow_origins: got "*" beside https://a.example'),
        ({"heartbeat.interval_seconds": 0}, "heartbeat.interval_seconds: got 0, expected greater than 0"),
        ({"heartbeat.format": "json"}, "heartbeat.format: got 'json', expected 'data' or 'comment'"),
        ({"broker.url": "redis:/me:hush@host"}, "broker.url: expected scheme://..., such as memory://"),
        ({"broker.url": 5}, "broker.url: got 5, expected a valid string"),
        ({"admin.port": -1}, "admin.port: got -1, expected greater than or equal to 0"),
        ({"drain.seconds": "soon"}, "drain.seconds: got 'soon', expected a valid number"),
        ({"log.level": "loud"}, "log.level: got 'loud', expected 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_what_is_refused(flags: Mapping[str, object], said: str) -> None:
    (problem,) = problems(None, {}, flags)
    assert said in problem
    assert problem.startswith("flag --")


@pytest.mark.parametrize("origin", ["https://a.example/", "https://a.example/x", "a.example", "null", "https://*", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    (problem,) = problems(None, {}, {"cors.allow_origins": [origin]})
    assert f"cors.allow_origins[0]: got {origin!r}, expected scheme://host" in problem


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("HTTPS://WWW.Example.COM", "https://www.example.com"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://*.Example.com", "https://*.example.com"),
        ("*", "*"),
    ],
)
def test_origins_become_what_browsers_send(origin: str, normal: str) -> None:
    assert load(None, {}, {"cors.allow_origins": [origin]}).config.cors.allow_origins == (normal,)


@pytest.mark.parametrize("network", ["127.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"])
def test_trusted_proxies_are_addresses_and_networks(network: str) -> None:
    assert load(None, {"QGSTREAM_SERVER__TRUSTED_PROXIES": network}).config.server.trusted_proxies == (network,)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_proxy_in_front_of_the_loopback_needs_its_names(host: str) -> None:
    flags: dict[str, object] = {"server.host": host, "server.trusted_proxies": "127.0.0.1"}
    (warning,) = load(None, {}, flags).warnings
    assert warning == (
        f"server.allowed_hosts: got none with server.host = {host!r} and server.trusted_proxies, expected the names by "
        "which clients reach the proxy: requests with another Host than localhost are refused"
    )
    for quiet in ({"server.allowed_hosts": "events.example.com"}, {"server.host": "0.0.0.0"}):
        assert load(None, {}, flags | quiet).warnings == ()
    assert load(None, {}, {"server.host": host}).warnings == ()


@pytest.mark.parametrize("name", ["http://a.example", "a.example/", "10.0.0.0/8", "", "*.*"])
def test_an_allowed_host_is_a_name(name: str) -> None:
    (problem,) = problems(None, {}, {"server.allowed_hosts": [name]})
    assert f"server.allowed_hosts[0]: got {name!r}, expected a host name" in problem


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    path = written(tmp_path, f'[auth]\npublish_keys = ["{SECRET}"]\nadmin_keys = {{ ops = {{ file = "/x" }} }}\n')
    environ = {"QGSTREAM_AUTH__JWT__ALGORITHMS": "HS256", "QGSTREAM_AUTH__JWT__SECRET": SECRET}
    auth = load(path, environ).config.auth
    assert auth.publish_keys == {"key-1": SecretStr(SECRET)}
    assert auth.jwt is not None
    assert auth.jwt.secret == SecretStr(SECRET)


@pytest.mark.parametrize("key", ["auth.publish_keys", "auth.jwt.secret", "auth.private_topics", "auth.x", "auth"])
def test_auth_does_not_come_by_flag(key: str) -> None:
    (problem,) = problems(None, {}, {key: SECRET})
    assert problem.startswith(f"flag --set {key}: the keys of auth cannot be set by a flag")
    assert "use the configuration file or the environment" in problem
    assert SECRET not in problem


def test_it_never_changes_in_place() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.server = config.server  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.limits.max_connections = 1  # type: ignore[misc]


def test_what_is_in_effect_is_plain_json_without_secrets() -> None:
    environ = {
        "QGSTREAM_AUTH__PUBLISH_KEYS": json.dumps({"ci": SECRET}),
        "QGSTREAM_BROKER__URL": f"redis://me:{SECRET}@host:6379/0",
    }
    shown = {key: (value, source) for key, value, source in load(None, environ, {"server.port": 0}).effective()}
    assert shown["auth.publish_keys"] == ("(not shown)", "environment QGSTREAM_AUTH__PUBLISH_KEYS")
    assert shown["broker.url"] == ("redis://(not shown)@host:6379/0", "environment QGSTREAM_BROKER__URL")
    assert shown["server.port"] == (0, "flag --port")
    assert shown["auth.jwt.secret"] == (None, "default")
    assert SECRET not in f"{json.dumps(shown)} {load(None, environ)!r}"


# A path may be shown, what is no path may not.
values = st.recursive(
    st.just(SECRET) | st.booleans() | st.integers() | st.just({"file": "/path"}) | st.just({"file": [SECRET]}),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["secret", "ci", SECRET]), inner, max_size=3)
    ),
    max_leaves=6,
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (
            "alic = {publish_rate = 1}",
            "limits.per_key.alic: no key in auth.publish_keys has this name; did you mean alice?",
        ),
        (
            "alice = {publish_rate = -1}",
            "limits.per_key.alice.publish_rate: got -1, expected greater than or equal to 0",
        ),
        ("alice = {publish_rate = nan}", "limits.per_key.alice.publish_rate: got nan, expected a finite number"),
        ("alice = {publish_rate = true}", "limits.per_key.alice.publish_rate: got True, expected a valid number"),
        ("alice = {rate = 1}", "limits.per_key.alice.rate: unknown key"),
        ("alice = 5", "limits.per_key.alice: got 5, expected a table"),
    ],
)
def test_a_wrong_limit_of_one_key_is_named(tmp_path: Path, limits: str, problem: str) -> None:
    path = written(tmp_path, f'[auth]\npublish_keys = {{alice = "{SECRET}"}}\n[limits.per_key]\n{limits}\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"file {path}: {problem}"


@pytest.mark.parametrize("keys", ['[{"hush": "x"}]', '{a = {"hush" = "x"}}', '{a = [{"hush" = "x"}]}'])
def test_a_word_in_the_place_of_a_key_is_not_shown(tmp_path: Path, keys: str) -> None:
    path = written(tmp_path, f"[auth]\npublish_keys = {keys.replace(': ', ' = ')}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "hush" not in str(caught.value)
    assert "auth.publish_keys" in str(caught.value)


@given(key=st.sampled_from(["publish_keys", "admin_keys", "publish_key", "jwt.secret", "jwt.secrt"]), value=values)
def test_no_secret_is_ever_shown(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "secret.toml"
    path.write_text(f"[auth]\n{key} = {toml(value)}\n", encoding="utf-8")
    environ = {f"QGSTREAM_AUTH__{key.upper().replace('.', '__')}": json.dumps(value)}
    for args in ((path,), (None, environ)):
        try:
            loaded = load(*args)
        except ConfigError as error:
            said = str(error)
        else:
            said = f"{loaded!r} {list(loaded.effective())} {loaded.warnings}"
        assert "hush" not in said
