"""A reload of a real server says what it changed: in the log, in the metrics and to who asked for it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hostile.observing import metrics
from tests.process.test_server import Reloadable
from tests.serving import KEY, ServerProcess

ADMIN = {"Authorization": "Bearer admin-key"}
AUTH = {"publish_keys": {"tests": KEY}, "admin_keys": {"boss": "admin-key"}}
BAD = "[limits]\nmax_conections = 1\n"


@pytest.fixture
def reloadable(tmp_path: Path) -> Iterator[Reloadable]:
    reloadable = Reloadable(tmp_path, auth=AUTH)
    yield reloadable
    reloadable.server.stop(expect=("config.rejected",))


def ask(server: ServerProcess, method: str, path: str, body: object = None) -> tuple[int, Any]:
    answer = httpx.request(
        method, f"{server.url}{path}", headers=ADMIN, json=body, timeout=60, trust_env=False
    )  # fmt: skip
    return answer.status_code, answer.json()


def test_the_log_says_what_has_changed(reloadable: Reloadable) -> None:
    line = reloadable.reload(auth=AUTH)
    assert (line["changes"], line["keys_added"], line["keys_revoked"], line["files_changed"]) == ({}, [], [], [])
    line = reloadable.reload(
        auth={"publish_keys": {"new": "new-key"}, "admin_keys": {"boss": "admin-key"}},
        limits={"max_connections": 7}, admin={"port": 1}, broker={"url": "memory://user:hunter2@here"},
    )  # fmt: skip
    assert line["changes"]["limits.max_connections"] == {"old": 10000, "new": 7}
    assert line["changes"]["broker.url"] == {"old": "memory://", "new": "memory://(not shown)@here"}
    assert line["changes"]["admin.port"] == {"old": 0, "new": 1}
    assert (line["keys_added"], line["keys_revoked"]) == (["auth.publish_keys.new"], ["auth.publish_keys.tests"])
    assert set(line["needs_restart"]) == {"admin.port", "broker.url"}
    text = reloadable.server.log_path.read_text()
    assert not [secret for secret in ("hunter2", "new-key", KEY, "admin-key") if secret in text]
    # Only what this one changed; what still waits for a restart is named again.
    line = reloadable.reload(auth=AUTH, admin={"port": 1})
    assert "admin.port" not in line["changes"]
    assert line["needs_restart"] == ["admin.port"]


def test_a_limit_that_was_tuned_stays_until_the_file_says_something_new(reloadable: Reloadable) -> None:
    assert ask(reloadable.server, "PATCH", "/admin/limits", {"max_connections": 12})[0] == 200
    checked = ask(reloadable.server, "POST", "/admin/reload", {"dry_run": True})[1]
    line = reloadable.reload(auth=AUTH)
    for outcome in (checked, line):
        assert (outcome["limits_kept"], outcome["limits_reset"]) == (["max_connections"], [])
        assert "limits.max_connections" not in outcome["changes"]
    line = reloadable.reload(auth=AUTH, limits={"max_connections": 9})
    assert (line["limits_kept"], line["limits_reset"]) == ([], ["max_connections"])
    assert line["changes"] == {"limits.max_connections": {"old": 12, "new": 9}}


def test_the_metrics_and_the_configuration_say_how_the_last_one_went(reloadable: Reloadable) -> None:
    server = reloadable.server

    def gauges() -> tuple[float, float, float]:
        found = metrics(server)
        names = ("last_reload_successful", "reload_failures_total", "last_reload_success_timestamp_seconds")
        successful, failures, at = (found[f"config_{name}"] for name in names)
        return successful, failures, at

    started = gauges()
    assert started[:2] == (1, 0)
    document = ask(server, "GET", "/admin/config")[1]
    assert document["last_failure"] is None
    good = reloadable.path.read_text()
    reloadable.path.write_text(good + BAD)
    server.process.send_signal(signal.SIGHUP)
    (problem,) = server.wait_for_log("config.rejected")["problems"]
    assert gauges() == (0, 1, started[2])
    refused = ask(server, "GET", "/admin/config")[1]
    assert refused["loaded_at"] == document["loaded_at"]
    assert refused["last_failure"]["problems"] == [problem]
    reloadable.path.write_text(good)
    reloadable.reload(auth=AUTH)
    successful, failures, at = gauges()
    assert (successful, failures) == (1, 1)
    assert at > started[2]
    again = ask(server, "GET", "/admin/config")[1]
    assert again["loaded_at"] > document["loaded_at"]
    assert again["last_failure"] == refused["last_failure"]  # its time says that it was before


def test_over_http(reloadable: Reloadable) -> None:
    server = reloadable.server
    reloadable.write({"auth": AUTH, "limits": {"max_connections": 9}, "admin": {"port": 1}})
    status, would = ask(server, "POST", "/admin/reload", {"dry_run": True})
    assert (status, would["status"]) == (200, "checked")
    assert would["changes"]["limits.max_connections"] == {"old": 10000, "new": 9}
    assert would["needs_restart"] == ["admin.port"]
    assert metrics(server)["connections_limit"] == 10000
    status, done = ask(server, "POST", "/admin/reload")
    assert (status, done) == (200, would | {"status": "reloaded"})
    assert metrics(server)["connections_limit"] == 9
    assert server.wait_for_log("admin.reload")["admin_key"] == "boss"
    assert server.wait_for_log("config.reloaded")["changes"] == done["changes"]
    # A look at a file that cannot be used is no failed reload; a reload of it is.
    reloadable.path.write_text(reloadable.path.read_text() + BAD)
    for body, failures in (({"dry_run": True}, 0), (None, 1)):
        status, answer = ask(server, "POST", "/admin/reload", body)
        assert (status, answer["error"]["code"]) == (422, "config_rejected")
        assert metrics(server)["config_reload_failures_total"] == failures
    assert ask(server, "POST", "/admin/reload", {"dry": True})[0] == 400
    assert ask(server, "POST", "/admin/reload", {"dry_run": "yes"})[0] == 400


def test_the_old_admin_key_is_told_what_became_of_itself(reloadable: Reloadable) -> None:
    reloadable.write({"auth": {"publish_keys": {"tests": KEY}, "admin_keys": {"new": "other"}}})
    status, done = ask(reloadable.server, "POST", "/admin/reload")
    assert (status, done["keys_revoked"]) == (200, ["auth.admin_keys.boss"])
    assert ask(reloadable.server, "POST", "/admin/reload")[0] == 401
    assert json.dumps("other") not in reloadable.server.log_path.read_text()


def test_whether_the_broker_is_needed_changes(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    broker = {"url": f"sqlite://{path}"}
    reloadable = Reloadable(tmp_path, auth=AUTH, broker=broker | {"required_for_ready": True})
    server = reloadable.server
    path.unlink()
    server.wait_for_log("broker.down")
    assert ask(server, "GET", "/ready") == (503, {"status": "broker_down"})
    line = reloadable.reload(auth=AUTH, broker=broker)
    assert line["changes"] == {"broker.required_for_ready": {"old": True, "new": False}}
    assert line["needs_restart"] == []
    assert ask(server, "GET", "/ready") == (200, {"status": "degraded", "reason": "broker_down"})
    config = ask(server, "GET", "/admin/config")[1]["config"]
    assert config["broker.required_for_ready"]["value"] is False
    server.stop(expect=("broker.down",))
