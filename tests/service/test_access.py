"""A reload of a real server: who loses a right loses it at once, with a reason, and nobody else notices."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.deploy.programs import free_port
from tests.hostile.observing import Watch, data_of
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until

MANY = 40


def opened(server: ServerProcess, topics: str, *headers: str) -> RawClient:
    client = RawClient(server.port).get(f"/events{topics}", *headers)
    client.until(b'"connected"')
    return client


def test_a_reload_takes_rights_away(tmp_path: Path) -> None:
    file, key = tmp_path / "qgstream.toml", tmp_path / "key"
    file.write_text("")
    key.write_text("old-key")
    keys = {"tests": KEY, "other": {"file": str(key)}}
    with ServerProcess(
        tmp_path, config=str(file), auth__publish_keys=keys, heartbeat__interval_seconds=600, admin__port=free_port()
    ) as server:
        take_rights_away(server, Watch(server), file, key)


def take_rights_away(server: ServerProcess, watch: Watch, file: Path, key: Path) -> None:
    outsiders = [opened(server, "?topic=orders") for _ in range(MANY)]
    of_the_old_key = [opened(server, "?topic=public", "Authorization: Bearer old-key") for _ in range(MANY)]
    of_everything = [opened(server, "") for _ in range(MANY)]
    insiders = [opened(server, "?topic=orders", f"Authorization: Bearer {KEY}") for _ in range(MANY)]
    publish(server, "orders", "before")
    file.write_text('[auth]\nprivate_topics = ["orders"]\n')
    key.write_text("new-key")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("config.reloaded")
    publish(server, "orders", "after")
    publish(server, "public", "for everybody")
    retries = set()
    for client in [*outsiders, *of_the_old_key]:
        client.to_end()
        closing = re.search(rb'retry: (\d+)\ndata: (\{"event": "closing".*\})\n\n\r\n0\r\n\r\n$', client.received)
        assert closing
        assert json.loads(closing[2])["reason"] == "access_changed"
        retries.add(closing[1])
    assert len(retries) > MANY
    assert {tuple(data_of(client)) for client in outsiders} == {("before",)}
    for client in of_everything:
        client.until(b"for everybody\n\n\r\n")
    for client in insiders:
        client.until(b"after\n\n\r\n")
    assert {tuple(data_of(client)) for client in of_everything} == {("before", "for everybody")}
    assert {tuple(data_of(client)) for client in insiders} == {("before", "after")}
    lines = watch.expect(access_changed=2 * MANY, left=2 * MANY)
    assert {line["reason"] for line in lines} == {"access_changed"}
    refused = RawClient(server.port).get("/events?topic=orders")
    refused.until(b"HTTP/1.1 401 ")
    for client in [*of_everything, *insiders, *outsiders, *of_the_old_key, refused]:
        client.close()
    wait_until(lambda: watch.open == 0, what="no stream")
