"""A RabbitMQ of the tests' own: no service of the machine, nothing outside its folder, and ports that were free."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import aiormq
from aiormq.exceptions import AMQPError

from tests.brokers.machines import Machine
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.serving import looks

# Debian's `rabbitmq-server` changes to the user rabbitmq, who may not write to our folder; this is what it starts.
DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# It takes five seconds on an idle machine, most of them on one core.
SECONDS = 120.0
_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
# The alarms are for machines that it has for itself.
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 1MB
"""


class RabbitmqServer(Machine):
    """One node. Erlang's port mapper runs beside it in the foreground, so that it ends with us."""

    def __init__(self, program: Path, folder: Path) -> None:
        command = [str(DEBIANS if DEBIANS.exists() else program)]
        hello = (b"AMQP\x00\x00\x09\x01", b"\x01")
        super().__init__(command, folder, environment=self._environment_in(folder), seconds=SECONDS, hello=hello)
        self._environment = {**self._environment, "RABBITMQ_NODENAME": f"qgstream{self.port}@localhost"}
        self.tls_port = free_port()
        self.certificate, key = make_certificate(folder)
        (folder / "rabbitmq.conf").write_text(
            _CONFIGURATION.format(port=self.port, tls_port=self.tls_port, certificate=self.certificate, key=key)
        )
        (folder / "plugins").write_text("[].\n")
        (folder / "env.conf").write_text("")
        self._mapper: subprocess.Popen[bytes] | None = None
        self._mapper_log: IO[bytes] | None = None

    @staticmethod
    def _environment_in(folder: Path) -> Mapping[str, str]:
        return {
            "HOME": str(folder),  # where Erlang keeps its cookie
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Replaces its shell, so that our signals reach Erlang; and Erlang does not wait busily for work.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ERL_ARGS": "+P 65536 +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -noinput",
        }

    def start(self) -> None:
        if self._mapper is None:
            environment = self._environment
            self._mapper_log = (self.folder / "epmd.log").open("ab")
            self._mapper = subprocess.Popen(
                ["epmd", "-port", environment["ERL_EPMD_PORT"], "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=self._mapper_log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        super().start()
        # Erlang writes down the names of what runs half a second later. Without that of the process which looks after
        # streams, no stream is there again after `kill -9`.
        names = [*(self.folder / "data").glob("*/coordination/*/names.dets")]
        for _ in looks(SECONDS):
            if any(b"rabbit_stream_coordinator" in path.read_bytes() for path in names):
                return
        raise AssertionError(f"the names of what runs are not on the disk: {names}")

    def serves(self) -> bool:
        """Whether it serves streams: it answers in AMQP before it does."""
        if not super().serves():
            return False
        with ThreadPoolExecutor(1) as thread:  # a loop of its own, whatever this thread has
            return thread.submit(asyncio.run, self._serves_streams()).result()

    async def _serves_streams(self) -> bool:
        try:
            async with asyncio.timeout(5), aiormq.connect(f"amqp://127.0.0.1:{self.port}") as connection:
                channel = await connection.channel()
                await channel.queue_declare("canary", durable=True, arguments={"x-queue-type": "stream"})
                await channel.basic_publish(b"", routing_key="canary")
        except (OSError, AMQPError):
            return False
        return True

    def control(self, *command: str) -> None:
        """Run `rabbitmqctl`; it takes seconds."""
        program = DEBIANS.with_name("rabbitmqctl")
        arguments = [str(program) if program.exists() else "rabbitmqctl", *command]
        environment = {**os.environ, **self._environment}
        subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=150)

    def add_user(self, name: str, *, configure: str, write: str, read: str) -> None:
        """A user with the password `password` who may do this, by regular expressions of what it may be done to."""
        user, configure, write, read = (f'<<"{word}">>' for word in (name, configure, write, read))
        users, by = "rabbit_auth_backend_internal", '<<"tests">>'
        # One call, because each starts an Erlang of its own.
        self.control(
            "eval",
            f'{users}:add_user({user}, <<"password">>, {by}), '
            f'{users}:set_permissions({user}, <<"/">>, {configure}, {write}, {read}, {by}).',
        )

    def end(self) -> None:
        """Kill it, and its port mapper."""
        self.kill()
        if self._mapper is not None and self._mapper_log is not None:
            self._mapper.kill()
            self._mapper.wait()
            self._mapper_log.close()
            self._mapper = None
