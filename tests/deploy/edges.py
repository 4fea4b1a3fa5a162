"""nginx, HAProxy and Caddy with the files of deploy/, in front of servers on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tests.deploy.programs import DEPLOY, Curl, Program, free_port, rewritten

IDLE_SECONDS = 2  # the server may be held up for nearly as long

# The file, what checks it, and what runs it.
Commands = tuple[Path, list[str], list[str]]


class Edge(Program):
    """A proxy that speaks TLS on `port`, in front of the servers with the ports `to` and the admin ports `check`.

    With `idle_seconds` its timeouts between two reads are shortened to that. `check_seconds` are between two checks of
    a server, where the proxy has checks.
    """

    def __init__(
        self, kind: str, program: Path, folder: Path, certificate: tuple[Path, Path], *,
        to: Sequence[int], check: Sequence[int], idle_seconds: float | None = None, check_seconds: float = 0.2,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.port = free_port()
        # The path of a Unix socket has at most 107 characters.
        self._socket_folder = Path(tempfile.mkdtemp(prefix="edge-"))
        self.stats_socket = self._socket_folder / "stats.sock"
        self._check_seconds = check_seconds
        self.certificate = certificate
        self.access_log = folder / f"{kind}-access.log"
        folder.mkdir(exist_ok=True)
        configure = {"nginx": self._nginx, "haproxy": self._haproxy, "caddy": self._caddy}[kind]
        path, self.check_command, command = configure(str(program), folder, to, check, idle_seconds)
        self.config_path = path
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        super().__init__(command, folder / f"{kind}.log", environment=home)
        self.wait_for_port(self.port)

    def reload(self) -> None:
        """Have it read its file again; what serves now goes on with its streams."""
        self.process.send_signal({"nginx": signal.SIGHUP, "haproxy": signal.SIGUSR2}[self.kind])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        shutil.rmtree(self._socket_folder)

    def _nginx(
        self, program: str, folder: Path, to: Sequence[int], check: Sequence[int], idle: float | None
    ) -> Commands:  # fmt: skip
        certfile, keyfile = self.certificate
        site = rewritten(
            DEPLOY / "nginx" / "qgstream.conf",
            {
                **_lines(
                    DEPLOY / "nginx" / "qgstream.conf",
                    r"^ +server 127\.0\.0\.1:800\d.*;\n",
                    zip(to, check, strict=True),
                ),
                "    listen [::]:443 ssl http2;\n": "",  # not every machine has IPv6
                "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
                "events.example.com;": "localhost;",
                "/etc/nginx/tls/events.example.com.crt": str(certfile),
                "/etc/nginx/tls/events.example.com.key": str(keyfile),
                "/var/log/nginx/qgstream.log": str(self.access_log),
                "proxy_read_timeout 15s;": f"proxy_read_timeout {idle or 15}s;",
                "send_timeout 60s;": f"send_timeout {idle or 60}s;",
            },
        )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        main = folder / "nginx.conf"
        main.write_text(
            ("user root;\n" if os.geteuid() == 0 else "")
            + f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;\n"
            + "events { worker_connections 512; }\nhttp {\n"
            + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
            + site
            + "}\n"
        )
        command = [program, "-p", str(folder), "-e", "stderr", "-c", str(main)]
        return main, [*command, "-t"], command

    def _haproxy(
        self, program: str, folder: Path, to: Sequence[int], check: Sequence[int], idle: float | None
    ) -> Commands:  # fmt: skip
        certfile, keyfile = self.certificate
        both = folder / "both.pem"
        both.write_bytes(certfile.read_bytes() + keyfile.read_bytes())
        path = folder / "haproxy.cfg"
        path.write_text(
            rewritten(
                DEPLOY / "haproxy" / "haproxy.cfg",
                {
                    "maxconn 40000": "maxconn 200",
                    "bind :443 ": f"bind 127.0.0.1:{self.port} ",
                    "/etc/haproxy/tls/events.example.com.pem": str(both),
                    "/run/haproxy/stats.sock mode": f"{self.stats_socket} mode",
                    **_lines(
                        DEPLOY / "haproxy" / "haproxy.cfg", r"^ +server .*:800\d port.*\n", zip(to, check, strict=True)
                    ),
                    "inter 1s": f"inter {self._check_seconds * 1000:.0f}ms",
                    "timeout client 60s": f"timeout client {idle or 60}s",
                    "timeout server 15s": f"timeout server {idle or 15}s",
                    "timeout tunnel 15s": f"timeout tunnel {idle or 15}s",
                },
            )
        )
        self.access_log = folder / "haproxy.log"
        return path, [program, "-c", "-f", str(path)], [program, "-W", "-db", "-f", str(path)]

    def _caddy(
        self, program: str, folder: Path, to: Sequence[int], check: Sequence[int], idle: float | None
    ) -> Commands:  # fmt: skip
        certfile, keyfile = self.certificate
        path = folder / "Caddyfile"
        here = f"\tbind 127.0.0.1\n\ttls {certfile} {keyfile}"
        path.write_text(
            "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
            + rewritten(
                DEPLOY / "caddy" / "Caddyfile",
                {
                    "events.example.com {": f"https://localhost:{self.port} {{\n{here}",
                    "127.0.0.1:8001 127.0.0.1:8002": " ".join(f"127.0.0.1:{port}" for port in to),
                    "read_timeout 15s": f"read_timeout {idle or 15}s",
                },
            )
        )
        self.access_log = folder / "caddy.log"
        given = ["--config", str(path), "--adapter", "caddyfile"]
        return path, [program, "validate", *given], [program, "run", *given]

    def open(self, target: str, *arguments: str, address: str = "127.0.0.1", accept: str = "text/event-stream") -> Curl:
        """Ask through the edge from an address of the loopback: without arguments as an EventSource does."""
        return Curl(
            "--cacert", self.certificate[0], "--interface", address, "--header", f"Accept: {accept}", *arguments,
            f"https://localhost:{self.port}{target}",
        )  # fmt: skip


def _lines(path: Path, pattern: str, ports: Iterable[tuple[int, int]]) -> dict[str, str]:
    """A change of the file: its lines for servers become one for each port and admin port, all as the first is."""
    first, *others = re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    lines = []
    for port, admin in ports:
        changes = {"8001": str(port), "9001": str(admin), "server one": f"server s{port}"}
        # In one pass: a port such as 39001 has another one in it.
        lines.append(re.sub(r"8001|9001|server one", lambda found: changes[found[0]], first))  # noqa: B023
    return {"".join([first, *others]): "".join(lines)}


MakeEdge = Callable[..., Edge]
