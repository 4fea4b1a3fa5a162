"""The OpenAPI description and the running server agree: schemathesis asks what it describes, and what it forbids."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from tornado.routing import PathMatches

from qgstream.http import openapi
from qgstream.http.app import admin_app, public_app
from qgstream.http.client import minified_version
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.service.service import Service
from tests.deploy.programs import free_port
from tests.serving import KEY, RawClient, ServerProcess

ADMIN_KEY = "admin-key"
# Enough to find what is wrong, few enough for every run; the seed is fixed, so a failure comes again.
EXAMPLES = "20"
# A drain ends the server, a stream of snapshots does not end, and a handshake is more than its parameters: they have
# tests of their own.
UNFIT = ("drain", "watch", "openWebSocket")
# That one filter is needed cannot be said of parameters, nor in JSON Schema what a network is; and a body that is made
# here is not compressed, whatever its header says.
CONFIG = f"""
[[operations]]
include-operation-id = "addBan"
checks.positive_data_acceptance.expected-statuses = [200, 201, 400, 409]

[[operations]]
include-operation-id = "kickConnections"
checks.positive_data_acceptance.expected-statuses = [200, 400]

[[operations]]
include-operation-id = "getConnection"
parameters = {{ "path.id" = 1 }}

[[operations]]
include-operation-id = "publish"
parameters = {{ "header.Content-Encoding" = "identity" }}

[[operations]]
include-operation-id = "versionedClient"
parameters = {{ "path.version" = "{minified_version()}" }}
"""


def run(document: Path, url: str, key: str, *operations: str) -> None:
    config = document.with_name("schemathesis.toml")
    config.write_text(CONFIG)
    named = [argument for name in operations for argument in ("--include-operation-id", name)]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", document, "--url", url,
         "--header", f"Authorization: Bearer {key}", "--checks", "all", "--phases", "coverage,fuzzing",
         "--max-examples", EXAMPLES, "--generation-deterministic", "--no-color", *named],
        capture_output=True, text=True, timeout=170, check=False, cwd=document.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Operations:       {len(operations)} selected" in done.stdout, done.stdout


def operations(*, admin: bool, methods: tuple[str, ...]) -> list[str]:
    return [
        operation["operationId"]
        for path, item in openapi.document()["paths"].items()
        for method, operation in item.items()
        if method in methods
        and path.startswith(("/admin", "/ready", "/metrics")) == admin
        and operation["operationId"] not in UNFIT
    ]


def fetch(port: int, target: str) -> bytes:
    request = Request(f"http://127.0.0.1:{port}{target}", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    with urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
        return body


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(openapi.document()))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    servers: list[ServerProcess] = []

    def start(**settings: object) -> ServerProcess:
        servers.append(
            ServerProcess(tmp_path, admin__port=free_port(), auth__admin_keys={"boss": ADMIN_KEY}, **settings)  # type: ignore[arg-type]  # `port` is among them
        )
        return servers[-1]

    yield start
    for server in servers:
        server.stop()  # looks at its log: nothing that was asked is an error of the server's


def test_the_public_side_is_as_described(start: Any, document: Path) -> None:
    # Streams end by themselves, so that they can be asked for like everything else.
    server = start(limits__max_connection_age_seconds=0.05)
    run(document, server.url, KEY, *operations(admin=False, methods=("get", "head", "post")))


def test_what_operators_read_is_as_described(start: Any, document: Path) -> None:
    server = start()
    streams = [RawClient(server.port).get(target) for target in ("/events", "/events?topic=a*&event=x&envelope=1")]
    for stream in streams:
        stream.until(b"connected")
    url = f"http://127.0.0.1:{server.admin_port}"
    assert json.loads(fetch(server.admin_port, "/admin/openapi.json")) == openapi.document()
    run(document, url, ADMIN_KEY, *operations(admin=True, methods=("get",)))
    assert json.loads(fetch(server.admin_port, "/admin/connections"))["matching"] == 2
    for stream in streams:
        stream.close()


def test_what_operators_change_is_as_described(start: Any, document: Path) -> None:
    server = start()
    url = f"http://127.0.0.1:{server.admin_port}"
    run(document, url, ADMIN_KEY, *operations(admin=True, methods=("patch", "delete", "post")))
    assert server.wait_for_log("admin.limits_changed")["admin_key"] == "boss"


PARTS = {
    "public": openapi.public_document,
    "without the operator's paths": lambda: openapi.public_document(with_operator_paths=False),
    "admin": openapi.admin_document,
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_of_the_description_is_whole(part: Callable[[], dict[str, Any]]) -> None:
    described, whole = part(), openapi.document()
    components = described["components"]
    referred = set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', json.dumps(described)))
    secured = {f"securitySchemes/{name}" for item in described["paths"].values() for operation in item.values()
               if isinstance(operation, dict) for way in operation.get("security", ()) for name in way}  # fmt: skip
    assert referred | secured == {f"{kind}/{name}" for kind, items in components.items() for name in items}
    used = {tag for item in described["paths"].values() for operation in item.values() if isinstance(operation, dict)
            for tag in operation["tags"]}  # fmt: skip
    assert {tag["name"] for tag in described["tags"]} == used
    assert described["info"] == whole["info"]


def test_the_parts_are_the_whole() -> None:
    public, admin = openapi.public_document(), openapi.admin_document()
    paths = openapi.document()["paths"]
    assert public["paths"] | admin["paths"] == paths
    assert [path for path in public["paths"] if path.startswith("/admin")] == []
    assert public["paths"].keys() - openapi.public_document(with_operator_paths=False)["paths"].keys() == {
        "/ready",
        "/metrics",
    }


def test_every_operation_is_checked_by_one_of_these() -> None:
    named = {operation["operationId"] for item in openapi.document()["paths"].values()
             for method, operation in item.items() if method != "parameters"}  # fmt: skip
    checked = operations(admin=False, methods=("get", "head", "post"))
    checked += operations(admin=True, methods=("get", "patch", "delete", "post"))
    assert named == {*checked, *UNFIT}


def test_every_path_that_is_served_is_described() -> None:
    service = Service(Hub(limits=LimitSettings()))
    served = {
        rule.matcher._path or rule.matcher.regex.pattern.removesuffix("$")
        for app in (public_app(service), admin_app(service))
        for rule in app.default_router.rules[0].target.rules if isinstance(rule.matcher, PathMatches)
    }  # fmt: skip
    described = {path.replace("{id}", "%s").replace("{version}", "%s") for path in openapi.document()["paths"]}
    assert served - {"/admin/?"} | {"/admin"} == described
