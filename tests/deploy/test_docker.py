"""The Dockerfile: what the linter says of it, and what its lines do. There is no container engine in these tests."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.programs import DEPLOY, Program, free_port
from tests.serving import wait_until

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, on one line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def copied() -> list[tuple[list[str], str]]:
    """What is copied from the source, and where to."""
    words = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [(each[:-1], each[-1]) for each in words if not each[0].startswith("--")]


def image_environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(last("ENV")))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built of nothing but what the Dockerfile copies, and its configuration file."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    source.mkdir()
    (build, _), (package, name), (config, _) = copied()
    for file in build:
        shutil.copy(ROOT / file, source)
    shutil.copytree(ROOT / package[0], source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", folder, source],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("qgstream-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    shutil.copy(ROOT / config[0], folder / "qgstream.toml")
    return folder


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_engine() -> None:
    wanted = {file for files, _ in copied() for file in files}
    assert {file for file in wanted if not (ROOT / file).exists()} == set()
    ignoring = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert ignoring[1] == "*"
    assert {line[1:] for line in ignoring if line.startswith("!")} == wanted


def test_it_is_small_and_nobody_in_particular_runs_it() -> None:
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert [stage.split()[0].rpartition("-")[2] for stage in stages] == ["slim", "slim"]
    # The last stage has what was built, and not what built it.
    final = instructions()[[name for name, _ in instructions()].index("FROM", 1) :]
    assert "RUN" not in {name for name, _ in final}
    uid, _, gid = last("USER").partition(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_image_starts_is_healthy_and_stops(image: Path, tmp_path: Path) -> None:
    port, admin_port = free_port(), free_port()
    environment = {
        **{key: value for key, value in image_environment().items() if key != "PATH"},
        "PYTHONPATH": str(image / "site"),
        "QGSTREAM_CONFIG": str(image / "qgstream.toml"),
        "QGSTREAM_SERVER__PORT": str(port),
        "QGSTREAM_ADMIN__PORT": str(admin_port),
        "QGSTREAM_DRAIN__SECONDS": "0",
        "QGSTREAM_DRAIN__NOTICE_SECONDS": "0",
    }
    entry = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    assert entry[0] == "qgstream"
    health = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    assert health[0] == "python"
    check = [sys.executable, *(word.replace("9000", str(admin_port)) for word in health[1:])]

    def is_healthy() -> bool:
        return subprocess.run(check, timeout=60, check=False, capture_output=True).returncode == 0

    assert not is_healthy()
    command = [sys.executable, "-m", *entry]
    # Somewhere else than in the source, or its package would be taken.
    with Program(command, tmp_path / "log", environment=environment, folder=tmp_path) as running:
        running.wait_for_port(port)
        wait_until(is_healthy, what="the health check")
        running.process.send_signal(15)
        assert running.process.wait(60) == 0, running.log
    assert not is_healthy()
    assert "config.warning" not in running.log
    started = next(json.loads(line) for line in running.log.splitlines() if "server.started" in line)
    assert (started["host"], started["port"]) == ("0.0.0.0", port)


def test_the_ports_are_those_of_the_configuration() -> None:
    text = (ROOT / "conf" / "production.toml").read_text()
    assert re.findall(r"^port = (\d+)", text, re.MULTILINE) == last("EXPOSE").split()
    assert os.fspath(image_environment()["QGSTREAM_CONFIG"]) == copied()[-1][1]
