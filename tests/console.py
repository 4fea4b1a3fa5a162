"""Runs the ```console blocks of the documentation and compares what they print with what the page says.

A line that starts with `$ ` is a command, the lines below it are its output. A block without a command is what the
stream that was opened last shows next. What differs from run to run may differ: the name of the log in an id (but one
name on the page is one name in the run), timestamps, jittered `retry:`. `...` stands for anything, and heartbeats are
passed over. Port 8000 on the page is a server that runs with conf/dev.toml.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from codecs import getincrementaldecoder
from pathlib import Path

from tests.documents import ROOT, Block

SECONDS = 60.0

_HEARTBEAT = re.compile(r'(?:id: [^\n]*\n)?data: \{"event": "heartbeat"[^\n]*\n\n')
_EPOCH = r"\b[0-9a-f]{10}(?=-\d)"
_VARIES = re.compile(
    rf"(?P<anything>^\.\.\.$|\.\.\.)|(?P<time>\d{{4}}-\d\d-\d\dT[\d:.]+\+00:00)|(?P<epoch>{_EPOCH})"
    r"|(?P<retry>(?<=^retry: )\d+$)",
    re.MULTILINE,
)


def steps(text: str) -> list[tuple[str | None, str]]:
    """Commands and what they print."""
    found: list[tuple[str | None, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif not found:
            found.append((None, [line]))
        else:
            found[-1][1].append(line)
    return [(command, "\n".join(lines).strip("\n")) for command, lines in found]


class Program:
    """A command that runs, and what it has printed."""

    def __init__(self, command: str, *, cwd: Path, environment: dict[str, str]) -> None:
        self.command = command
        self.process = subprocess.Popen(
            ["/bin/bash", "-o", "pipefail", "-c", command], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._printed = ""  # and not looked at yet
        self._ended = False
        self._change = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        decode = getincrementaldecoder("utf-8")("replace").decode
        while more := os.read(self.process.stdout.fileno(), 65536):
            with self._change:
                self._printed += decode(more)
                self._change.notify()
        with self._change:
            self._ended = True
            self._change.notify()

    def wait_for(self, pattern: str, expected: str, *, to_end: bool) -> re.Match[str]:
        """The match of what it prints next; with `to_end` of everything that it prints."""
        compiled = re.compile(pattern + (r"\n*\Z" if to_end else r"(?=\n|\Z)"))
        match: re.Match[str] | None = None

        def found() -> bool:
            nonlocal match
            self._printed = _HEARTBEAT.sub("", self._printed).lstrip("\n")
            match = compiled.match(self._printed)
            return self._ended or (match is not None and not to_end)

        with self._change:
            in_time = self._change.wait_for(found, SECONDS)
        late = "" if in_time else f"\nwithin {SECONDS} s, and has not ended"
        assert match is not None, f"{self.command}\nprinted\n{self._printed}{late}\nexpected\n{expected}"
        assert in_time or not to_end, f"{self.command} has not ended"
        self._printed = self._printed[match.end() :]
        return match

    def end(self) -> None:
        """Ctrl-C, for it and what it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Console:
    """A terminal of somebody who follows a page from top to bottom."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self.port = port
        self.epochs: dict[str, str] = {}  # on the page: in this run
        self.open: list[Program] = []
        programs = folder / "bin"
        programs.mkdir()
        (programs / "qgstream").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qgstream "$@"\n')
        (programs / "qgstream").chmod(0o755)
        # As `make` leaves it. The programs are on the path already.
        (programs / "activate").touch()
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(programs)
        (folder / "conf").symlink_to(ROOT / "conf")
        (folder / ".curlrc").write_text("no-progress-meter\n")  # a terminal shows none
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
        }

    def run(self, block: Block) -> None:
        """Do what the block says."""
        for command, expected in steps(block.text):
            if command is None:
                assert self.open, f"{block}: no command, and no stream is open"
                self._compare(self.open[-1], expected, to_end=False)
                continue
            try:
                self._follow(command, expected)
            except AssertionError as error:
                if " -m 1 " not in command:
                    raise AssertionError(f"{block}: {error}") from None
                # A second is long for a reader, and may be short on a machine that does something else besides.
                self._follow(command.replace(" -m 1 ", " -m 10 "), expected)

    def _follow(self, command: str, expected: str) -> None:
        program = Program(self.in_this_run(command), cwd=self.folder, environment=self.environment)
        self.open.append(program)
        if "curl -N " in command:  # it stays open
            self._compare(program, expected, to_end=False)
        else:
            self._compare(program, expected, to_end=True)
            self.open.remove(program)
            program.end()

    def in_this_run(self, text: str) -> str:
        """The page's words with the port and the ids of this run."""
        for on_page, actual in self.epochs.items():
            text = text.replace(on_page, actual)
        return text.replace(":8000", f":{self.port}")

    def _compare(self, program: Program, expected: str, *, to_end: bool) -> None:
        new: list[str] = []

        def varies(match: re.Match[str]) -> str:
            if match["anything"]:
                return r"[\s\S]*?" if match.string[match.start() - 1 : match.start()] in ("", "\n") else r"[^\n]*?"
            if match["time"]:
                return r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00"
            if match["retry"]:
                return r"\d+"
            epoch = match["epoch"]
            if epoch in self.epochs:
                return self.epochs[epoch]
            if epoch in new:
                return f"(?P=e{epoch})"
            new.append(epoch)
            return f"(?P<e{epoch}>[0-9a-f]{{10}})"

        parts, at = [], 0
        for match in _VARIES.finditer(expected):
            parts += [re.escape(expected[at : match.start()]), varies(match)]
            at = match.end()
        found = program.wait_for("".join(parts) + re.escape(expected[at:]), expected, to_end=to_end)
        self.epochs |= {epoch: found[f"e{epoch}"] for epoch in new}

    def close(self) -> None:
        """End what still runs."""
        for program in self.open:
            program.end()
        self.open.clear()
