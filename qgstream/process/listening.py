"""The addresses that a server listens on, and why it cannot."""

from __future__ import annotations

import errno
import os
import socket

from tornado.netutil import bind_sockets

from qgstream.logs import quote
from qgstream.net.sockets import BACKLOG
from qgstream.process.machine import listener

_MAX_COMMAND_CHARACTERS = 100
# What `OSError.errno` stands for, in words that name the setting to change.
_CHANGES = {
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.EACCES: "choose a port from 1024 on, or allow lower ones (CAP_NET_BIND_SERVICE)",
}


class CannotListen(OSError):
    """The server cannot listen where `setting` says. The text is a whole sentence."""

    def __init__(self, sentence: str, error: OSError) -> None:
        super().__init__(error.errno, sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


def place(host: str, port: int) -> str:
    """`127.0.0.1:8000`, `[::1]:8000`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def owner(port: int) -> tuple[int | None, str]:
    """Who listens on a TCP port: the process id, where this user may know it, and words for the process. The command
    line of the process may hold its tokens, and a log is read by more people than `ps` is."""
    found = listener(port)
    if found is None:
        # Of another user, in another namespace, or on a system without /proc.
        return None, "a process that this user cannot see"
    pid, command = found
    return pid, f"the process {pid} ({quote(command, _MAX_COMMAND_CHARACTERS)})"


def listen(setting: str, host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Sockets that listen. Raises `CannotListen`; `setting` is the section, for instance `server`."""
    try:
        return bind_sockets(port, host, backlog=BACKLOG, reuse_port=reuse_port)
    except OSError as error:
        raise CannotListen(_sentence(setting, host, port, error), error) from error


def _sentence(setting: str, host: str, port: int, error: OSError) -> str:
    said = f"cannot listen on {place(host, port)}"
    if isinstance(error, socket.gaierror):
        return f"{said}: the name cannot be resolved ({error.strerror}); change {setting}.host"
    if error.errno == errno.EADDRINUSE:
        flag = "--port " if setting == "server" else f"--set {setting}.port="
        another = f"{flag}{port + 1 if port < 65535 else 0}"
        pid, who = owner(port)
        if pid == os.getpid():
            return f"{said}: this server uses the port already, for another interface; choose another port: {another}"
        return f"{said}: the port is in use by {who}; stop it, or choose another port: {another}"
    change = _CHANGES.get(error.errno or 0)
    return f"{said}: {error.strerror or error}" + (f"; {change} ({setting}.host, {setting}.port)" if change else "")
