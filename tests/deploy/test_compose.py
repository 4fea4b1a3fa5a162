"""deploy/compose: what the specification says of it, and its parts, run. No test here has a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.brokers.machines import REDIS_HELLO, Machine
from tests.deploy.programs import DEPLOY, Program, free_port
from tests.deploy.test_docker import instructions, last
from tests.documents import blocks_of
from tests.serving import wait_until

COMPOSE = DEPLOY / "compose"
FILE = COMPOSE / "compose.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
(STARTED,) = [
    block for block in blocks_of(DEPLOY.parent / "docs" / "production.md") if "docker compose up" in block.text
]


def mounts(service: str) -> dict[str, Path]:
    """The files of this repository in a container, by their paths there."""
    found = [volume.split(":") for volume in SERVICES[service].get("volumes", ())]
    return {target: (COMPOSE / source).resolve() for source, target, *_ in found if source.startswith(".")}


def ports() -> dict[str, list[list[str]]]:
    """Address (if any), port of the host and port of the container, of each service."""
    return {name: [port.split(":") for port in service.get("ports", ())] for name, service in SERVICES.items()}


def test_it_is_as_the_compose_specification_says() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command: list[str | Path] = [program, "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_mounted_and_built_is_there() -> None:
    mounted = [path for name in SERVICES for path in mounts(name).values()]
    assert mounted
    assert [path for path in mounted if not path.is_file()] == []
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in volumes if not volume.startswith(".")} == set(DOCUMENT["volumes"])
    build = SERVICES["qgstream"]["build"]
    assert (COMPOSE / build["context"]).resolve() == DEPLOY.parent
    assert (COMPOSE / build["context"] / build["dockerfile"]).is_file()


def test_only_the_streams_are_for_others() -> None:
    assert ports().pop("qgstream") == [["8000", "8000"], ["127.0.0.1", "9000", "9000"]]
    assert [port[-1] for port in ports()["qgstream"]] == last("EXPOSE").split()
    others = [port for name, found in ports().items() for port in found if name != "qgstream"]
    assert {port[0] for port in others} == {"127.0.0.1"}
    published = [port[-2] for found in ports().values() for port in found]
    assert len(published) == len(set(published))


def test_the_image_can_speak_to_the_broker_and_has_time_to_leave() -> None:
    (extras,) = [rest for name, rest in instructions() if name == "ARG" and rest.startswith("EXTRAS=")]
    scheme = environment()["QGSTREAM_BROKER__URL"].partition(":")[0]
    assert scheme in re.findall(r"\w+", extras)
    production = (DEPLOY.parent / "conf" / "production.toml").read_text()
    drain = sum(map(int, re.findall(r"^(?:notice_)?seconds = (\d+)", production.split("[drain]")[1], re.MULTILINE)))
    assert int(SERVICES["qgstream"]["stop_grace_period"].removesuffix("s")) > drain


def test_the_page_says_every_secret_that_it_asks_for(tmp_path: Path) -> None:
    """The commands of the page, up to the one that needs an engine."""
    lines = STARTED.text.splitlines()
    assert lines[0] == "cd deploy/compose"
    assert lines[-1].startswith("docker compose up ")
    script = "\n".join(lines[1:-1])
    subprocess.run(["/bin/bash", "-euc", script], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    said = dict(re.findall(r"^(\w+)=(\w{32,})$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert set(said) == set(re.findall(r"\$\{(\w+):\?", FILE.read_text()))
    assert len(set(said.values())) == len(said)
    # It is read by its owner alone, and no commit takes it along.
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert ".env" in (DEPLOY.parent / ".gitignore").read_text().splitlines()


def test_prometheus_takes_its_configuration_and_scrapes_the_operators_port(
    tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    folder = "/etc/prometheus/"
    for target, path in mounts("prometheus").items():
        (tmp_path / target.removeprefix(folder)).write_bytes(path.read_bytes())
    command: list[str | Path] = [require_program("promtool"), "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    ours, alone = (
        yaml.safe_load((folder / "prometheus.yml").read_text()) for folder in (COMPOSE, DEPLOY / "prometheus")
    )
    (target,) = ours["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"qgstream:{last('EXPOSE').split()[1]}"
    # Otherwise it is the file for a Prometheus on the machine itself.
    alone["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    assert ours == alone


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    provisioned = {target: path for target, path in mounts("grafana").items() if "/provisioning/" in target}
    documents = {target.split("/")[4]: yaml.safe_load(path.read_text()) for target, path in provisioned.items()}
    (source,) = documents["datasources"]["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert port in [published[-1] for published in ports()[host]]
    (provider,) = documents["dashboards"]["providers"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert mounts("grafana")[str(home)] == DEPLOY / "grafana" / "qgstream.json"
    assert provider["options"]["path"] == str(home.parent)


def environment() -> dict[str, str]:
    """Of the container with the server, with a secret for each that .env has."""
    return {
        name: re.sub(r"\$\{(\w+):(?:-([^}]*)|\?[^}]*)\}", lambda match: match[2] or f"a-{match[1]}", value)
        for name, value in SERVICES["qgstream"]["environment"].items()
    }


@pytest.fixture
def redis(tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[Machine]:
    """By the command of the file, on another port."""
    require_program("redis-server")
    command = [*SERVICES["redis"]["command"], "--bind", "127.0.0.1", "--port", "{port}", "--dir", "{folder}"]
    machine = Machine(command, tmp_path, hello=REDIS_HELLO)
    machine.start()
    yield machine
    machine.kill()


def test_the_server_and_its_redis_run_as_they_are_configured(
    redis: Machine, tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    kind, *check = SERVICES["redis"]["healthcheck"]["test"]
    require_program(check[0])
    asked = [*check[:1], "-p", str(redis.port), *check[1:]]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert (kind, done.stdout) == ("CMD", "PONG\n")
    port, admin_port = free_port(), free_port()
    configured = environment()
    url = configured["QGSTREAM_BROKER__URL"]
    assert url == "redis://redis:6379"
    settings = configured | {
        "QGSTREAM_CONFIG": str(DEPLOY.parent / "conf" / "production.toml"),
        "QGSTREAM_BROKER__URL": url.replace("redis:6379", f"127.0.0.1:{redis.port}"),
        "QGSTREAM_SERVER__PORT": str(port), "QGSTREAM_ADMIN__PORT": str(admin_port), "QGSTREAM_DRAIN__SECONDS": "0",
    }  # fmt: skip
    with Program([sys.executable, "-m", "qgstream", "serve"], tmp_path / "log", environment=settings) as server:
        server.wait_for_port(port)
        ready = f"http://127.0.0.1:{admin_port}/ready"
        wait_until(lambda: httpx.get(ready, timeout=60).json() == {"status": "ready"}, what="the server")
        answer = httpx.post(
            f"http://127.0.0.1:{port}/events", json={"topic": "orders", "data": 7}, timeout=60,
            headers={"Authorization": "Bearer a-PUBLISH_KEY"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        admin = httpx.get(
            f"http://127.0.0.1:{admin_port}/admin/limits", headers={"Authorization": "Bearer a-ADMIN_KEY"}, timeout=60
        )
        assert admin.status_code == 200, admin.text
        assert "config.warning" not in server.log
