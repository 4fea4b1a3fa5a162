"""What `make dist` has made, as users get it: installed in an empty environment; then serve, publish and tail.

    python tests/packaging/tour.py dist

Each archive is installed by pip with what it names as its dependencies, and nothing else. The sdist must have what the
repository has, so that whoever unpacks it can run the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = "tour"
SECONDS = 120  # how long a failure takes
# A checkout that belongs to another user, as in a container, is one that git refuses to read otherwise.
GIT = ("git", "-c", "safe.directory=*")
# What setuptools adds to an sdist.
ADDED = {"PKG-INFO", "setup.cfg"}


def missing_in(sdist: Path) -> set[str]:
    """The files of the repository that an sdist lacks."""
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    listed = subprocess.run([*GIT, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(filter(None, listed.stdout.split("\0"))) - names


def surplus_in(sdist: Path) -> set[str]:
    """The files of an sdist that are neither the repository's nor setuptools' own."""
    with tarfile.open(sdist) as packed:
        names = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
    listed = subprocess.run(
        [*GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name for name in names - ADDED - set(listed.stdout.split("\0")) if "qgstream.egg-info/" not in name}


def installed(archive: Path, folder: Path) -> Path:
    """The program of an archive, in an environment that had nothing and shares no module with this script's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=SECONDS)
    python = folder / "bin" / "python"
    # An sdist is built by what its pyproject.toml asks for, which pip gets for it. --no-compile: it runs once.
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-qq",
        "--no-compile",
        archive,
    ]
    subprocess.run(command, check=True, timeout=SECONDS, env=environment())
    return folder / "bin" / "qgstream"


def environment(**more: str) -> dict[str, str]:
    """Nothing in it leads to the source."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("QGSTREAM", "PYTHON"))} | more


def tour(archive: Path, folder: Path) -> str:
    """Serve, publish and tail, in an empty folder. Returns the version."""
    program = installed(archive, folder / "environment")
    (folder / "empty").mkdir()

    def run(*arguments: str, **more: str) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=folder / "empty", env=environment(**more), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{archive.name}: qgstream {arguments[0]}: {done.stderr}"
        return done.stdout

    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [program, "serve", "--port", "0", "--set", "drain.seconds=0"], cwd=folder / "empty", stderr=output,
            env=environment(QGSTREAM_AUTH__PUBLISH_KEYS=json.dumps({"tour": KEY})),
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{started(server, log)}"
        for page in ("/", "/client.js", "/client.d.ts", "/metrics"):
            with urllib.request.urlopen(url + page, timeout=SECONDS) as answer:
                assert answer.status == 200
        run("publish", "--url", url, "--event", "created", "orders", '{"order": 7}', QGSTREAM_PUBLISH_KEY=KEY)
        event = json.loads(run("tail", "--url", url, "--since", "earliest", "--count", "1"))
        assert (event["topic"], event["event"], event["data"]) == ("orders", "created", {"order": 7}), event
        server.terminate()
        assert server.wait(SECONDS) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
    assert list((folder / "empty").iterdir()) == [], "it left files behind"
    return run("--version").split()[-1]


def started(server: subprocess.Popen[bytes], log: Path) -> int:
    """The port that it listens on, when it does."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if '"server.started"' in line and line.endswith("\n"):
                port: int = json.loads(line)["port"]
                return port
        time.sleep(0.02)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def main(dist: Path) -> None:
    """Try the wheel and the sdist, both at once."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert not missing_in(sdist), f"{sdist.name} lacks files (MANIFEST.in): {sorted(missing_in(sdist))}"
    assert not surplus_in(sdist), f"{sdist.name} has files that are not the repository's: {sorted(surplus_in(sdist))}"
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folders = [Path(name, kind) for kind in ("wheel", "sdist")]
        for folder in folders:
            folder.mkdir()
        for archive, version in zip((wheel, sdist), pool.map(tour, (wheel, sdist), folders), strict=True):
            assert f"qgstream-{version}" in archive.name, (archive.name, version)
            print(f"{archive.name}: installed, served, published and tailed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
