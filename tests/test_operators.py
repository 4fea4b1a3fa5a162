"""What an operator pastes during an incident, on a server that has something to say.

The commands of docs/incidents.md, docs/who-is-flooding-me.md and docs/admin-api.md that ask a server. Those that look
elsewhere (the log, the journal, systemd) are left out: a block with such a command says so.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.documents import ROOT, Block, blocks_of
from tests.publishing import publish
from tests.serving import KEY as PUBLISH_KEY
from tests.serving import RawClient, ServerProcess

PAGES = [ROOT / "docs" / name for name in ("incidents.md", "who-is-flooding-me.md", "admin-api.md")]
SHOWN = [
    block for page in PAGES for block in blocks_of(page) if block.note.startswith("run by tests/test_operators.py")
]
KEY = "admin-key"


@dataclass
class Shell:
    folder: Path
    server: ServerProcess

    def run(self, command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KEY": KEY, "ADMIN": self.server.url}
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", command], cwd=self.folder, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]
) -> Iterator[Shell]:  # fmt: skip
    """Of somebody who has `ADMIN` and `KEY`, on a server with streams, publishers and refusals."""
    require_program("curl")
    require_program("jq")
    folder = tmp_path_factory.mktemp("operator")
    (folder / ".curlrc").write_text("fail-with-body\n")  # an answer such as 404 is a failure of its command
    with ServerProcess(folder, auth__admin_keys={"ops": KEY}, auth__publish_keys={"sensors": PUBLISH_KEY}) as server:
        stream = RawClient(server.port).get("/events?topic=orders")
        stream.until(b'"connected"')
        publish(server, "orders", {"order": 7})
        refused = httpx.post(
            f"{server.url}/events", json={"topic": "a", "data": 1}, headers={"Authorization": "Bearer no"}
        )
        assert refused.status_code == 401
        yield Shell(folder, server)
        stream.close()


def asking(block: Block) -> list[str]:
    """The commands of a block that ask the server; one that loops over several asks this one."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    commands = re.findall(r"^\s*(curl .*?)(?:; date .*)?$", text, re.MULTILINE)
    return [re.sub(r"http://127\.0\.0\.1:\$port", "$ADMIN", command) for command in commands]


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_the_commands_that_ask_a_server_are_answered(shell: Shell, block: Block) -> None:
    commands = asking(block)
    assert commands or block.note.endswith("as far as it asks the server")
    for command in commands:
        shell.run(command)


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_a_command_names_fields_that_are_there(shell: Shell, block: Block) -> None:
    """jq says `null` of a field that does not exist, and nothing else does."""
    for command in asking(block):
        # Whole objects may have fields without a value; `sub` is that of a token.
        if "| jq -c" in command and ".sub" not in command:
            assert "null" not in shell.run(command), command
