"""Certificates and keys: an encrypted key is refused in words, and a reload takes a whole pair or none."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import ssl
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from qgstream.net import certificates
from tests.hostile.certificates import TlsClient, make_certificate
from tests.serving import ServerProcess

SAID = "is encrypted, expected one without a pass phrase (openssl pkey -in "


def encrypt(keyfile: Path, form: PrivateFormat = PrivateFormat.PKCS8) -> None:
    key = load_pem_private_key(keyfile.read_bytes(), None)
    keyfile.write_bytes(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"sesame")))


@contextmanager
def on_a_terminal(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose controlling terminal has nobody before it: a question there is never answered."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "qgstream", *argv], stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(its, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # one call
    ) as process:  # fmt: skip
        os.close(its)
        try:
            yield process
        finally:
            process.kill()
            os.close(ours)


def settings(name: str, certfile: Path, keyfile: Path) -> list[str]:
    if name == "server":
        return ["--set", f"server.certfile={certfile}", "--set", f"server.keyfile={keyfile}"]
    return ["--set", f"broker.url={name}://127.0.0.1:1?certfile={certfile}&keyfile={keyfile}"]


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=["PKCS8", "traditional"])
@pytest.mark.parametrize("command", ["serve", "check-config"])
@pytest.mark.parametrize("name", ["server", "nats+tls", "amqps"])
def test_an_encrypted_key_is_refused(tmp_path: Path, name: str, command: str, form: PrivateFormat) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    encrypt(keyfile, form)
    with on_a_terminal(command, *settings(name, certfile, keyfile)) as process:
        out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (1, b"")
    (line,) = [line for line in err.decode().splitlines() if not line.startswith(("{", "warning: "))]
    assert f"the key in {keyfile} {SAID}" in line
    assert "sesame" not in line


def test_a_reload_on_a_terminal_does_not_ask(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    flags = ("--port", "0", "--set", "drain.seconds=0")
    with on_a_terminal("serve", *flags, *settings("server", certfile, keyfile)) as process:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        next(line for line in lines if line["event"] == "server.started")
        encrypt(keyfile)
        process.send_signal(signal.SIGHUP)
        (problem,) = next(line for line in lines if line["event"] == "config.rejected")["problems"]
        assert f"the key in {keyfile} {SAID}" in problem
        process.send_signal(signal.SIGTERM)
        assert process.wait(50) == 0


def test_a_key_in_the_file_of_the_certificate(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    encrypt(keyfile)
    certfile.write_bytes(certfile.read_bytes() + keyfile.read_bytes())
    with pytest.raises(certificates.KeyIsEncrypted, match=f"the key in {certfile} is encrypted"):
        certificates.load_cert_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certfile)


def test_a_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="null"):
        certificates.load_cert_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "\0")


def serial(server: ServerProcess) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = TlsClient(server.port, context)
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate = client.socket.getpeercert(binary_form=True)
    client.get("/health").until(b'"ok"')
    client.close()
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def test_a_reload_takes_a_pair_that_fits_and_no_other(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    new_certfile, new_keyfile = make_certificate(other)
    server = ServerProcess(tmp_path, server__certfile=str(certfile), server__keyfile=str(keyfile))
    before = serial(server)
    # As tools that renew do it: one file after the other.
    certfile.write_bytes(new_certfile.read_bytes())
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("config.rejected")
    assert serial(server) == before
    keyfile.write_bytes(new_keyfile.read_bytes())
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("config.reloaded")
    assert serial(server) == x509.load_pem_x509_certificate(new_certfile.read_bytes()).serial_number != before
    server.stop(expect=("config.rejected",))
