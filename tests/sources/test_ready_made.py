"""The ready-made sources on the real thing: a clock, programs, files that are rotated, an HTTP server."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import AnyHttpUrl
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from qgstream.sources.base import Draft, Events, SourceFailed, Unpublishable
from qgstream.sources.clock import clock
from qgstream.sources.file import Tail, file
from qgstream.sources.lines import MAX_LINE_BYTES
from qgstream.sources.process import process
from qgstream.sources.url import url
from tests.conftest import ExpectLog
from tests.hostile.certificates import make_certificate
from tests.http.asking import until
from tests.proxying import set_environment
from tests.scripted import Script, refused

SLEEP = "import time; time.sleep(60)"


class Taken:
    """What a source has yielded so far, taken by a task of its own, as the intake does it."""

    def __init__(self, events: Events) -> None:
        self.items: list[Any] = []
        self.error: BaseException | None = None
        self._task = asyncio.ensure_future(self._take(events))

    async def _take(self, events: Events) -> None:
        try:
            async with aclosing(events):
                async for item in events:
                    self.items += item if isinstance(item, list) else [item]
        except SourceFailed as error:
            self.error = error

    @property
    def data(self) -> list[Any]:
        return [item.data if isinstance(item, Draft) else item for item in self.items]

    async def until(self, count: int) -> list[Any]:
        await until(lambda: len(self.items) >= count or self._task.done())
        return self.data

    async def over(self) -> list[Any]:
        await self._task
        return self.data

    async def cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def taking(events: Events) -> AsyncIterator[Taken]:
    taken = Taken(events)
    try:
        yield taken
    finally:
        await taken.cancel()


# The clock.


@pytest.mark.gen_test
async def test_the_clock_ticks_at_once_and_then_on_whole_multiples() -> None:
    async with taking(clock(topic="t", event="tick", interval_seconds=0.125)) as taken:
        await taken.until(4)
    first, *ticks = taken.items
    assert (first.topic, first.event) == ("t", "tick")
    times = [datetime.fromisoformat(tick.data["time"]).timestamp() for tick in ticks]
    # A loaded machine makes a tick late, never early, and none comes twice.
    multiples = [int(time / 0.125) for time in times]
    assert len(set(multiples)) == len(times)
    assert sorted(multiples) == multiples


@pytest.mark.gen_test
async def test_a_clock_that_is_set_back_ticks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    async with taking(clock(interval_seconds=0.05)) as taken:
        await taken.until(2)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 86400)
        await taken.until(4)


# Programs.


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.gen_test
async def test_the_lines_that_a_program_prints() -> None:
    code = "import os; print('one'); print('two', os.environ['A'], os.getcwd()); print('no end', end='')"
    async with taking(process(command=python(code), topic="p", event="e", cwd=Path("/"), env={"A": "x"})) as taken:
        assert await taken.over() == ["one", "two x /", "no end"]
    assert {(item.topic, item.event) for item in taken.items} == {("p", "e")}
    assert taken.error is None


@pytest.mark.gen_test
async def test_a_program_may_print_whole_events() -> None:
    code = """print('{"topic": "a", "data": {"n": 1}, "event": "e"}\\nnonsense\\n{"data": 2}')"""
    async with taking(process(command=python(code), parse="event")) as taken:
        first, second, third = await taken.over()
    assert (first["topic"], first["event"], bytes(first["data"])) == ("a", "e", b'{"n": 1}')
    assert isinstance(second, Unpublishable)
    assert third["topic"] == "process"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program"], "/no/such/program: cannot be started: "),
        (python("import sys; sys.exit('it is broken')"), f"{sys.executable}: ended with status 1: it is broken"),
        (python("import os; os.kill(os.getpid(), 9)"), f"{sys.executable}: ended by SIGKILL"),
        (
            python("import sys; sys.stderr.write('x' * 3_000_000 + '\\nlast\\n'); sys.exit(3)"),
            f"{sys.executable}: ended with status 3: last",
        ),
    ],
)
async def test_a_program_that_fails_says_how(command: list[str], said: str) -> None:
    async with taking(process(command=command)) as taken:
        assert await taken.over() == []
    assert str(taken.error).startswith(said)


@pytest.mark.gen_test
async def test_a_program_and_what_it_started_end_with_the_source(tmp_path: Path) -> None:
    child = f"import signal, os, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); {SLEEP}"
    code = f"import subprocess, sys, os; subprocess.Popen([sys.executable, '-c', {child!r}]); {SLEEP}"
    async with taking(process(command=python(code))) as taken:
        (pid,) = await taken.until(1)
        assert os.getsid(int(pid)) != os.getsid(0), "Ctrl-C is for the server alone"
    await until(lambda: not _runs(int(pid)))


@pytest.mark.gen_test
@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_what_a_program_leaves_behind_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool
) -> None:
    """It holds the program's pipes: without that the source would neither end nor be begun again."""
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    mark = tmp_path / "cleaned"
    child = (
        "import signal, sys, time, pathlib, os\n"
        f"def end(*_): time.sleep(0.1); pathlib.Path({str(mark)!r}).write_text('up'); sys.exit()\n"
        f"signal.signal(signal.SIGTERM, end); print(os.getpid(), flush=True); {SLEEP}"
    )
    code = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; {SLEEP}']); sys.exit(3)"
    )
    async with taking(process(command=python(code))) as taken:
        pid, *_ = await taken.over()
    assert str(taken.error) == f"{sys.executable}: ended with status 3"
    assert mark.read_text() == "up"  # it had its time
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.gen_test
async def test_a_program_that_does_not_mind_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgstream.sources.process.TERMINATE_SECONDS", 0.05)
    code = "import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: print('x' * 60_000, flush=True)"
    async with taking(process(command=python(code))) as taken:
        await taken.until(1)


@pytest.mark.gen_test
async def test_a_program_may_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    code = (
        "import signal, sys, time, pathlib\n"
        f"def end(*_): pathlib.Path({str(mark)!r}).write_text('up'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    async with taking(process(command=python(code))) as taken:
        await taken.until(1)
    assert mark.read_text() == "up"


@pytest.mark.gen_test
async def test_a_program_waits_while_nothing_is_taken() -> None:
    code = "import itertools\nfor n in itertools.count(): print(n)"
    async with aclosing(process(command=python(code))) as events:
        while not (first := await anext(events)):
            pass
        assert isinstance(first, list)
        assert first[0].data == "0"


# Files.


@pytest.mark.gen_test
async def test_a_file_is_followed_through_rotation_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("old\n")
    async with taking(file(path=path, poll_seconds=0.01)) as taken:
        # It has been opened, at its end, when what is written shows up.
        while not taken.items:
            _append(path, "begun\n")
            await asyncio.sleep(0.02)
        _append(path, "the last of them\n")
        await until(lambda: taken.data[-1] == "the last of them")
        taken.items.clear()
        _append(path, "one\ntw")
        assert await taken.until(1) == ["one"]
        _append(path, "o\n")
        assert await taken.until(2) == ["one", "two"]
        # Rotation: whoever has it open may write on, and what has no line end yet is the last line.
        with path.open("a") as before:
            path.rename(tmp_path / "app.log.1")
            before.write("three\n")
            before.flush()
            assert await taken.until(3) == ["one", "two", "three"]
            before.write("four")
        path.write_text("five\n")
        assert await taken.until(5) == ["one", "two", "three", "four", "five"]
        # Truncation.
        os.truncate(path, 0)
        _append(path, "6\n")
        assert await taken.until(6) == ["one", "two", "three", "four", "five", "6"]
        # Gone, and there again.
        path.unlink()
        path.write_text("seven\n")
        assert (await taken.until(7))[-1] == "seven"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.gen_test
async def test_a_file_from_its_beginning_and_one_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "late.ndjson"
    looks, read = list[int](), Tail.read

    def noted(tail: Tail) -> list[bytes | None]:
        found = read(tail)
        looks.append(len(found))
        return found

    monkeypatch.setattr(Tail, "read", noted)
    async with taking(file(path=path, topic="f", parse="json", poll_seconds=0.01)) as taken:
        await until(lambda: bool(looks))  # it has seen that there is none
        path.write_text('{"n": 1}\nnonsense\n')
        first, second = await taken.until(2)
        assert bytes(first) == b'{"n": 1}'
        assert isinstance(second, Unpublishable)
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 1) + b"\n" + b"y\n" * 100_000)
    async with taking(file(path=path, begin="beginning", poll_seconds=0.01)) as taken:
        items = await taken.until(100_001)
        assert isinstance(items[0], Unpublishable)
        assert set(items[1:]) == {"y"}


@pytest.mark.gen_test
async def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    async with taking(file(path=tmp_path)) as taken:
        await taken.over()
    assert str(taken.error) == f"{tmp_path}: cannot be read: Is a directory"


# Documents.


Answer = Callable[[RequestHandler], Awaitable[None] | None]


class Web:
    """A server that answers as the test says next; its last answer stands."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        web = self

        class Handler(RequestHandler):
            async def get(self) -> None:
                web.asked.append(dict(self.request.headers))
                self.clear_header("Etag")
                answer = web.answers.pop(0) if len(web.answers) > 1 else web.answers[0]
                done = answer(self)
                if done is not None:
                    await done

            def compute_etag(self) -> None:
                return None

        sock, self.port = bind_unused_port()
        self.server = HTTPServer(Application([("/.*", Handler)], log_function=lambda _: None))
        self.server.add_socket(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.stop()
        await self.server.close_all_connections()

    def source(self, **options: Any) -> Events:
        address = AnyHttpUrl(f"http://user:hush@127.0.0.1:{self.port}/x?token=hush")
        return url(url=address, interval_seconds=0.01, **options)


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: RequestHandler) -> None:
        handler.set_status(status)
        for name, value in headers.items():
            handler.set_header(name.replace("_", "-"), value)
        if status != 304:
            handler.write(body)

    return answer


@pytest.mark.gen_test
async def test_only_changes_of_a_document_are_published() -> None:
    async with Web() as web:
        changed = "Wed, 21 Oct 2015 07:28:00 GMT"
        web.answers = [
            says(b"one\n", ETag='"1"', Last_Modified=changed), says(b"", 304), says(b"", 304),
            says(b"two\n"), says(b"two\n"), says(b"three\n"),
        ]  # fmt: skip
        async with taking(web.source(topic="u", headers={"X-Mine": "yes"})) as taken:
            assert await taken.until(3) == ["one", "two", "three"]
    assert "If-None-Match" not in web.asked[0]
    assert web.asked[0]["X-Mine"] == "yes"
    assert web.asked[0]["Authorization"].startswith("Basic ")
    for asked in web.asked[1:4]:
        assert (asked["If-None-Match"], asked["If-Modified-Since"]) == ('"1"', changed)
    assert "If-None-Match" not in web.asked[4], "the second document had none"


@pytest.mark.gen_test
async def test_a_document_that_cannot_be_had_is_asked_for_again() -> None:
    async with Web() as web:

        async def hangs(_: RequestHandler) -> None:
            await asyncio.sleep(6)

        web.answers = [
            says(b"", 500), says(b"", 302, Location="/elsewhere"), says(b"", 304), hangs, says(b"x" * 2_000_000),
            says(b'{"n": 1}\n'), says(b"nonsense"), says(b'{"n":\n 2}'),
        ]  # fmt: skip
        async with taking(web.source(parse="json", timeout_seconds=2)) as taken:
            *refused, good, nonsense, better = await taken.until(8)
        said = [item.reason for item in refused]
        assert said[:3] == [f"got status {status}, expected 200 or 304" for status in (500, 302, 304)]
        assert all(reason.startswith("request failed: ") for reason in said[3:])
        assert "hush" not in "".join(said)
        assert bytes(good) == b'{"n": 1}'
        assert isinstance(nonsense, Unpublishable)
        assert bytes(better) == b'{"n":  2}'


@pytest.mark.gen_test
async def test_a_server_that_is_not_there() -> None:
    web = Web()
    async with web:
        pass
    async with taking(web.source()) as taken:
        (refused, *_) = await taken.until(1)
    assert isinstance(refused, Unpublishable)
    assert refused.reason.startswith("request failed: ")


@pytest.mark.gen_test
async def test_a_document_over_tls_in_an_environment_that_says_whom_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("SSL Error", logger="tornado.general", required=False)
    certfile, keyfile = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certfile, keyfile)
    async with Script([refused(200, "one")], tls) as server:
        set_environment(monkeypatch, SSL_CERT_FILE="/gone", SSLKEYLOGFILE="/gone/keys", NO_PROXY="fd00::/8")
        async with taking(url(url=AnyHttpUrl(server.url), topic="u", interval_seconds=0.01)) as taken:
            first = (await taken.until(1))[0]
            assert isinstance(first, Unpublishable)
            assert "certificate verify failed" in first.reason
            assert first.reason.endswith(" (SSL_CERT_FILE: cannot read '/gone': No such file or directory)")
            monkeypatch.setenv("SSL_CERT_FILE", str(certfile))
            await until(lambda: "one" in taken.data)
