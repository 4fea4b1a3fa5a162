"""A program that runs beside the server: what it prints are the events, line by line."""

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
from qgstream.sources.lines import Lines, Parse, event_of

# How long a program has between SIGTERM and SIGKILL; less than the server has for all its sources.
TERMINATE_SECONDS = 3.0
_LOOK_SECONDS = 0.02
_READ_BYTES = 64 * 1024
# Of its standard error, for the line in the log about how it ended.
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
    """The lines that a program prints. It is no shell that reads `command`; `env` is added to the environment.

    The program is begun again when it fails. It gets SIGTERM, and all that it has started, when the server has drained;
    what it leaves behind when it ends gets SIGTERM then.
    """
    try:
        program = subprocess.Popen(  # noqa: ASYNC220, S603  # as asyncio does it; the command is the operator's
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
            env=None if env is None else os.environ | env,
            # A group of its own: Ctrl-C is for the server, and what the program has started ends with it.
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise SourceFailed(f"{command[0]}: cannot be started: {error}") from None
    # Not asyncio's own Process: when nobody reads what a program has printed, its `wait` does not return (3.11).
    async with _reading(program.stdout) as printed, _reading(program.stderr) as said:
        words = asyncio.create_task(_last_words(said))
        ending = asyncio.create_task(_end_with(program))
        try:
            lines = Lines()
            while data := await printed.read(_READ_BYTES):
                yield [event_of(line, topic, event, parse) for line in lines.feed(data)]
            yield [event_of(line, topic, event, parse) for line in lines.rest()]
            await ending
            last = await words
        finally:
            words.cancel()
            ending.cancel()
            rest = asyncio.create_task(_last_words(printed))  # or it would wait for a reader instead of ending
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
    """The last line of what it writes, all of which is read, or it would wait for us to do so."""
    tail = b""
    while data := await stream.read(_READ_BYTES):
        tail = (tail + data)[-_LAST_WORDS_BYTES:]
    *_, last = tail.decode(errors="replace").strip().split("\n")
    return last


async def _end_with(program: subprocess.Popen[bytes]) -> None:
    """Wait for the program, and end what it has started and left: that may hold its pipes, and then neither its end nor
    a failure would ever be noticed."""
    await _ended(program)
    await asyncio.to_thread(_end, program)


async def _ended(program: subprocess.Popen[bytes]) -> None:
    """Return when the program has ended, and nobody has waited for it yet: as long as that is so, its number is its."""
    try:
        descriptor = os.pidfd_open(program.pid)
    except (AttributeError, OSError):  # Linux before 5.3, or another system
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, program.pid, flags) is None:  # noqa: ASYNC110, ASYNC222  # it does not block
            await asyncio.sleep(10 * _LOOK_SECONDS)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)  # pidfd_open(2): readable when it has ended
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _end(program: subprocess.Popen[bytes]) -> None:
    """SIGTERM for the program and all that it has started, and SIGKILL for what remains."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, number)
        deadline = time.monotonic() + TERMINATE_SECONDS
        while time.monotonic() < deadline:
            if _is_over(program):
                return  # and its number may be another's by now
            time.sleep(_LOOK_SECONDS)


def _is_over(program: subprocess.Popen[bytes]) -> bool:
    """Whether nobody is left of it."""
    if program.poll() is None:
        return False
    try:
        os.killpg(program.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody of it has become another user
    return False
