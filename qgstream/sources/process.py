"""A program that runs beside the server: each line that it prints is an event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from qgstream.sources.base import Events, SourceFailed
from qgstream.sources.lines import LineSplitter, Parse, event_of

# The time between SIGTERM and SIGKILL; shorter than the server's time for all its sources.
TERMINATE_SECONDS = 3.0
_LOOK_SECONDS = 0.02
_READ_BYTES = 64 * 1024
# The last part of its standard error, for the log line about its end.
_LAST_WORDS_BYTES = 2048


async def process(
    *,
    command: Annotated[list[str], Field(min_length=1)],
    topic: str = "process",
    event: str | None = None,
    parse: Parse = "text",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Events:
    """Yield the lines that a program prints. `command` is run without a shell; `env` is added to the environment.

    The program is restarted when it fails. When the server has drained, the program and its child processes get
    SIGTERM. When the program ends by itself, the child processes that it leaves get SIGTERM.
    """
    try:
        program = subprocess.Popen(  # noqa: ASYNC220, S603  # asyncio does the same; the operator configured the command
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
            env=None if env is None else os.environ | env,
            # A process group of its own: Ctrl-C is for the server alone, and the program's child processes end with it.
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise SourceFailed(f"{command[0]}: cannot be started: {error}") from None
    # Not asyncio's Process: its `wait` does not return while nothing reads the program's output (Python 3.11).
    async with _reading(program.stdout) as printed, _reading(program.stderr) as said:
        words = asyncio.create_task(_last_words(said))
        ending = asyncio.create_task(_end_with(program))
        try:
            lines = LineSplitter()
            while data := await printed.read(_READ_BYTES):
                yield [event_of(line, topic, event, parse) for line in lines.feed(data)]
            yield [event_of(line, topic, event, parse) for line in lines.rest()]
            await ending
            last = await words
        finally:
            words.cancel()
            ending.cancel()
            rest = asyncio.create_task(
                _last_words(printed)
            )  # otherwise the program could wait for a reader and never end
            await asyncio.to_thread(_end, program)
            rest.cancel()
    status = program.returncode
    if status:
        how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
        raise SourceFailed(f"{command[0]}: ended {how}{f': {last}' if last else ''}")


@asynccontextmanager
async def _reading(pipe: IO[bytes] | None) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    try:
        yield reader
    finally:
        transport.close()


async def _last_words(stream: asyncio.StreamReader) -> str:
    """Return the last line of its standard error. Reads all of it, or the program would wait for a reader."""
    tail = b""
    while data := await stream.read(_READ_BYTES):
        tail = (tail + data)[-_LAST_WORDS_BYTES:]
    *_, last = tail.decode(errors="replace").strip().split("\n")
    return last


async def _end_with(program: subprocess.Popen[bytes]) -> None:
    """Wait for the program, and end the child processes that it left: they may hold its pipes, and then neither its end
    nor a failure would ever be noticed."""
    await _ended(program)
    await asyncio.to_thread(_end, program)


async def _ended(program: subprocess.Popen[bytes]) -> None:
    """Return when the program has ended and its status is not collected yet: until then its process id stays its
    own."""
    try:
        descriptor = os.pidfd_open(program.pid)
    except (AttributeError, OSError):  # Linux before 5.3, or another system
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, program.pid, flags) is None:  # noqa: ASYNC110, ASYNC222  # it does not block
            await asyncio.sleep(10 * _LOOK_SECONDS)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)  # pidfd_open(2): readable when the program has ended
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _end(program: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the program and all its child processes, and SIGKILL to those that remain."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, number)
        deadline = time.monotonic() + TERMINATE_SECONDS
        while time.monotonic() < deadline:
            if _is_over(program):
                return  # and another process may have its id by now
            time.sleep(_LOOK_SECONDS)


def _is_over(program: subprocess.Popen[bytes]) -> bool:
    """Return whether no process of the group is left."""
    if program.poll() is None:
        return False
    try:
        os.killpg(program.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # one of its processes runs as another user now
    return False
