"""Why a server cannot listen: one sentence with the address, the reason and what to do."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys

import pytest

from qgstream.process import listening
from qgstream.process.listening import CannotListen, listen, place

# Tornado's `bind_sockets` leaves its socket to the collector when it fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refusal(setting: str, host: str, port: int) -> tuple[int | None, str]:
    """The number and the sentence. The socket that failed is collected in this test, and not in another one."""
    try:
        listen(setting, host, port)
    except CannotListen as error:
        found = error.errno, str(error)
    gc.collect()
    return found


def test_a_port_that_another_program_uses() -> None:
    program = [sys.executable, "-c", "input()", "--token=s3cret", "\x1b[31m"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=[taken.fileno()])
    try:  # from here on, only the other process listens
        number, said = refusal("server", "127.0.0.1", port)
        assert number == errno.EADDRINUSE
        assert said.startswith(f"cannot listen on 127.0.0.1:{port}: the port is in use by the process {other.pid} (")
        assert said.endswith(f"); stop it, or choose another port: --port {(port + 1) % 65536}")
        assert "--token=[secret]" in said
        assert said.isprintable()
        assert refusal("admin", "127.0.0.1", port)[1].endswith(f"--set admin.port={(port + 1) % 65536}")
    finally:
        other.communicate(b"\n", timeout=60)


def test_a_port_that_this_server_uses_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal("admin", "127.0.0.1", port)[1] == (
            f"cannot listen on 127.0.0.1:{port}: this server uses the port already, for another interface; "
            f"choose another port: --set admin.port={(port + 1) % 65536}"
        )


def test_a_program_that_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "listener", lambda _port: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("server", "127.0.0.1", port)[1]
    assert said.startswith(
        f"cannot listen on 127.0.0.1:{port}: the port is in use by a process that this user cannot see; stop it"
    )


def test_an_address_of_another_machine() -> None:
    number, said = refusal("server", "192.0.2.1", 80)
    assert number == errno.EADDRNOTAVAIL
    assert said.startswith("cannot listen on 192.0.2.1:80: ")
    assert said.endswith("; choose an address of this machine (server.host, server.port)")


def test_a_name_that_nobody_has() -> None:
    said = refusal("admin", "nowhere.invalid", 80)[1]
    assert said.startswith("cannot listen on nowhere.invalid:80: the name cannot be resolved (")
    assert said.endswith("; change admin.host")


def test_an_address_of_ipv6() -> None:
    assert place("::1", 80) == "[::1]:80"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_other_reasons_are_said_in_the_words_of_the_system(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(listening, "bind_sockets", refuse)
    said = refusal("server", "127.0.0.1", 80)[1]
    assert said.startswith(f"cannot listen on 127.0.0.1:80: {os.strerror(number)}")
    assert ("CAP_NET_BIND_SERVICE" in said) == (number == errno.EACCES)
