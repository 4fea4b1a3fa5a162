"""The table of docs/clients.md is what happened: every client, on real streams, through everything that ends one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, prose, rows, words
from tests.interop.crowd import BROWSERS, Crowd, Switch, own
from tests.publishing import publish
from tests.serving import ServerProcess

TABLE = [row for row in rows(prose(ROOT / "docs" / "clients.md"), under="resume") if row]
COLUMNS = ("connect", "types", "reconnect", "resume", "overload", "drain", "503")
SAID = {(words(row[0])[0], column): row[1 + n] for row in TABLE for n, column in enumerate(COLUMNS)}
CLIENTS = [words(row[0])[0] for row in TABLE]
QUICK: dict[str, Any] = {
    "limits__retry_seconds": 0.3,
    "limits__overload_retry_seconds": 0.3,
    "auth__admin_keys": '["admin-key"]',
}
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Observed = dict[tuple[str, str], bool]


class Play:
    """One server and what happens to it, while all clients look on; and which of them did what."""

    def __init__(self, server: ServerProcess, crowd: Crowd) -> None:
        self.server = server
        self.crowd = crowd
        self.observed: Observed = {}

    def those_who(self, *columns: str) -> list[str]:
        """The clients that can do this, if the table is right."""
        return [client for client in CLIENTS if all(SAID[client, column] == "yes" for column in columns)]

    def see(self, column: str, is_true: Callable[[str], bool]) -> None:
        self.observed |= {(client, column): is_true(client) for client in CLIENTS}

    def told(self, scenario: str, word: str, *, reason: str | None = None, times: int = 1) -> Callable[[str], bool]:
        """Whether a client got a message of the server's own."""

        def is_true(client: str) -> bool:
            messages = [own(record) for record in self.crowd.received(client, scenario)]
            found = [m for m in messages if m.get("event") == word and (reason is None or m["reason"] == reason)]
            return len(found) >= times

        return is_true

    def got(self, scenario: str, data: str, *, event: str = "message") -> Callable[[str], bool]:
        """Whether a client got what was published, and got it once."""

        def is_true(client: str) -> bool:
            text = f'["{data}"]'
            return [x.event for x in self.crowd.received(client, scenario) if x.data == text] == [event]

        return is_true

    def publish(
        self, scenario: str, data: str, *, event: str | None = None, server: ServerProcess | None = None
    ) -> None:
        # JSON: what a client shows of it is the same with and without an envelope.
        publish(server or self.server, scenario, [data], event=event)

    def admin(self, method: str, target: str, body: object = None) -> None:
        request = urllib.request.Request(
            f"{self.server.url}/admin{target}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer admin-key", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, node_modules: Path, require_program: Callable[[str], Path]
) -> Iterator[Observed]:
    """Everything that happened, in one play: it takes as long as its slowest client."""
    require_program("curl")
    for browser in BROWSERS.values():
        for program in browser.programs():
            require_program(program)
    tmp_path = tmp_path_factory.mktemp("play")
    log = f"sqlite://{tmp_path}/events.db"

    def start_another() -> ServerProcess:
        return later.enter_context(ServerProcess(tmp_path, broker__url=log, **QUICK))

    with (
        ServerProcess(tmp_path, **QUICK) as server,
        ServerProcess(tmp_path, broker__url=log, **QUICK | {"drain__seconds": 1}) as leaving,
        ExitStack() as later,
        Switch(server.port) as broken,
        Switch(server.port) as refusing,
        Switch(leaving.port) as balancer,
    ):
        ports = {"cut": broken.port, "overload": server.port, "drain": balancer.port, "503": refusing.port}
        urls = {name: f"http://127.0.0.1:{port}/events?topic={name}" for name, port in ports.items()}
        # A page without scripts and without a policy, of the server's own.
        with Crowd(urls, modules=node_modules, folder=tmp_path, page=f"{server.url}/client.d.ts") as crowd:
            play = Play(server, crowd)
            see_connections(play)
            see_types(play)
            see_a_cut(play, broken)
            see_an_overload(play)
            see_a_503(play, refusing)
            see_a_drain(
                play, balancer, leaving, lambda: later.enter_context(ServerProcess(tmp_path, broker__url=log, **QUICK))
            )
        assert [record for record in crowd.records if record.kind == "fault"] == []
        yield play.observed


# What happens.


def see_connections(play: Play) -> None:
    for scenario in play.crowd.urls:
        play.crowd.wait("connected", play.told(scenario, "connected"), play.those_who("connect"))
    play.see("connect", lambda client: all(play.told(scenario, "connected")(client) for scenario in play.crowd.urls))


def see_types(play: Play) -> None:
    play.publish("cut", "untyped")
    play.publish("cut", "typed", event="created")
    untyped, typed = play.got("cut", "untyped"), play.got("cut", "typed", event="created")
    play.crowd.wait("types", lambda client: untyped(client) and typed(client), play.those_who("types"))
    play.see("types", lambda client: untyped(client) and typed(client))


def see_a_cut(play: Play, relay: Switch) -> None:
    """The connection breaks, in the middle of everything; the first to come back find nobody."""
    before = {client: relay.visits(client) for client in CLIENTS}
    relay.cut()
    play.publish("cut", "meanwhile")
    returning = play.those_who("reconnect")
    play.crowd.wait("came back", lambda client: relay.visits(client) > before[client], returning)
    relay.restore()
    again = play.told("cut", "connected", times=2)
    play.crowd.wait("connected again", again, returning)
    resumed = play.got("cut", "meanwhile")
    play.crowd.wait("resumed", resumed, play.those_who("resume"))
    play.see("reconnect", again)
    play.see("resume", resumed)


def see_an_overload(play: Play) -> None:
    """There is no room: 200, `rejected`, `retry:` and the end; and then there is room again."""
    play.admin("PATCH", "/limits", {"max_connections": 0})
    play.admin("DELETE", "/connections?topic=overload")
    play.publish("overload", "meanwhile")
    rejected, resumed = play.told("overload", "rejected", reason="max_connections"), play.got("overload", "meanwhile")
    play.crowd.wait("rejected", rejected, play.those_who("overload"))
    play.admin("PATCH", "/limits", {"max_connections": 10000})
    play.crowd.wait("room again", resumed, play.those_who("overload"))
    play.see("overload", lambda client: rejected(client) and resumed(client))


def see_a_503(play: Play, relay: Switch) -> None:
    """A proxy that answers 503 for a server that is away, as they do."""
    before = {client: relay.visits(client) for client in CLIENTS}
    relay.answer_new(REFUSAL)
    play.admin("DELETE", "/connections?topic=503")
    returning = play.those_who("503")
    # Also those that are stopped by it: one that comes later would find no 503 any more.
    play.crowd.wait("came for a 503", lambda client: relay.visits(client) > before[client], play.those_who("overload"))
    play.publish("503", "meanwhile")
    relay.restore()
    resumed = play.got("503", "meanwhile")
    play.crowd.wait("after a 503", resumed, returning)
    play.see("503", resumed)


def see_a_drain(play: Play, balancer: Switch, leaving: ServerProcess, start: Callable[[], ServerProcess]) -> None:
    """A server says goodbye to each; for a moment there is none; then another one takes over its log."""
    leaving.stop()
    before = {client: balancer.visits(client) for client in CLIENTS}

    def found_nobody(client: str) -> bool:
        # Some give up at that, perhaps a moment ago.
        has_stopped = any(record.kind == "stopped" for record in play.crowd.received(client, "drain"))
        return has_stopped or balancer.visits(client) > before[client]

    play.crowd.wait("found nobody", found_nobody, play.those_who("overload"))
    arrived = start()
    balancer.lead_to(arrived.port)
    play.publish("drain", "meanwhile", server=arrived)
    told, resumed = play.told("drain", "closing", reason="drain"), play.got("drain", "meanwhile")
    play.crowd.wait("arrived elsewhere", resumed, play.those_who("drain"))
    play.see("drain", lambda client: told(client) and resumed(client))


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("client", CLIENTS)
def test_what_the_table_says_is_what_happened(observed: Observed, client: str, column: str) -> None:
    assert SAID[client, column] == ("yes" if observed[client, column] else "no")
