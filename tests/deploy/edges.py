"""nginx, HAProxy and Caddy with the files of deploy/, in front of a server on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.deploy.programs import DEPLOY, Curl, Program, free_port, rewritten

IDLE_SECONDS = 1

# The file, what checks it, and what runs it.
Commands = tuple[Path, list[str], list[str]]


class Edge(Program):
    """A proxy that speaks TLS on `port`. With `idle_seconds` its timeout between two reads is shortened to that."""

    def __init__(
        self, kind: str, program: Path, folder: Path, certificate: tuple[Path, Path], *,
        to: int, check: int, idle_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.port = free_port()
        self.certificate = certificate
        self.access_log = folder / f"{kind}-access.log"
        folder.mkdir(exist_ok=True)
        configure = {"nginx": self._nginx, "haproxy": self._haproxy, "caddy": self._caddy}[kind]
        path, self.check_command, command = configure(str(program), folder, to, check, idle_seconds or 60)
        self.config_path = path
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        super().__init__(command, folder / f"{kind}.log", environment=home)
        self.wait_for_port(self.port)

    def _nginx(self, program: str, folder: Path, to: int, check: int, idle: float) -> Commands:
        certfile, keyfile = self.certificate
        site = rewritten(
            DEPLOY / "nginx" / "qgstream.conf",
            {
                "server 127.0.0.1:8000;": f"server 127.0.0.1:{to};",
                "    listen [::]:443 ssl http2;\n": "",  # not every machine has IPv6
                "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
                "events.example.com;": "localhost;",
                "/etc/nginx/tls/events.example.com.crt": str(certfile),
                "/etc/nginx/tls/events.example.com.key": str(keyfile),
                "/var/log/nginx/qgstream.log": str(self.access_log),
                "proxy_read_timeout 60s;": f"proxy_read_timeout {idle}s;",
                "send_timeout 60s;": f"send_timeout {idle}s;",
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

    def _haproxy(self, program: str, folder: Path, to: int, check: int, idle: float) -> Commands:
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
                    "server one 127.0.0.1:8000 port 9000": f"server one 127.0.0.1:{to} port {check}",
                    "inter 1s": "inter 200ms",
                    "timeout client 60s": f"timeout client {idle}s",
                    "timeout server 60s": f"timeout server {idle}s",
                    "timeout tunnel 60s": f"timeout tunnel {idle}s",
                },
            )
        )
        self.access_log = folder / "haproxy.log"
        return path, [program, "-c", "-f", str(path)], [program, "-db", "-f", str(path)]

    def _caddy(self, program: str, folder: Path, to: int, check: int, idle: float) -> Commands:
        certfile, keyfile = self.certificate
        path = folder / "Caddyfile"
        here = f"\tbind 127.0.0.1\n\ttls {certfile} {keyfile}"
        path.write_text(
            "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
            + rewritten(
                DEPLOY / "caddy" / "Caddyfile",
                {
                    "events.example.com {": f"https://localhost:{self.port} {{\n{here}",
                    "127.0.0.1:8000": f"127.0.0.1:{to}",
                    "read_timeout 60s": f"read_timeout {idle}s",
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


MakeEdge = Callable[..., Edge]
