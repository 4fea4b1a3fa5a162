"""What the environment tells HTTP clients: the proxy on the way to a server, and the certificates that TLS trusts.

The environment is an argument. A variable is read for a URL that needs it, so no other one can be in the way: httpx
reads all of them when a client is made, and raises what it cannot read. The variables are curl's and OpenSSL's:
https://everything.curl.dev/usingcurl/proxies/env.html, and SSL_CTX_load_verify_locations(3).
"""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qgstream.errors import QgstreamError

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

_CERT_FILE, _CERT_DIR, _KEY_LOG = "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"


class BadEnvironment(QgstreamError):
    """An environment variable that is needed cannot be used. The message names the variable."""

    code = "bad_environment"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. `port` is None for the default one of the scheme."""

    variable: str
    scheme: str
    host: str
    port: int | None = None
    username: str = ""
    password: str = field(default="", repr=False)


def proxy_for(scheme: str, host: str, port: int | None, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy on the way to a server, or None when the way is direct. `host` is without brackets.

    `http_proxy` or `https_proxy`, else `all_proxy`, unless `no_proxy` covers the server; each also in capitals. Raises
    `BadEnvironment` for a value that is no proxy's URL.
    """
    for name in (f"{scheme}_proxy", "all_proxy"):
        variable, value = _read(name, environ)
        if value:
            break
    else:
        return None
    _, exempt = _read("no_proxy", environ)
    if _is_exempt(exempt, scheme, host.lower().rstrip("."), str(port or _DEFAULT_PORTS.get(scheme, ""))):
        return None
    return _parsed(variable, value)


def _read(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """A variable and its value. The name in lower case comes first, even if it is empty: that switches a proxy off."""
    upper = name.upper()
    # CVE-2016-5385: in a CGI program HTTP_PROXY is what a client sent as `Proxy:`.
    if name not in environ and not (upper == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
        name = upper
    return name, environ.get(name, "").strip()


def _parsed(variable: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host:
        raise no_url(variable)
    if parts.scheme not in PROXY_SCHEMES:
        raise BadEnvironment(f"{variable}: got the scheme {parts.scheme!r}, expected one of {', '.join(PROXY_SCHEMES)}")
    return Proxy(variable, parts.scheme, host, port, unquote(parts.username or ""), unquote(parts.password or ""))


def no_url(variable: str) -> BadEnvironment:
    """What to raise for a value that is not a URL. The value is not repeated: it may hold a password."""
    return BadEnvironment(f"{variable}: got something that is not a URL, expected http://HOST:PORT")


# NO_PROXY.


def _is_exempt(exempt: str, scheme: str, host: str, port: str) -> bool:
    return any(_covers(entry.lower(), scheme, host, port) for entry in re.split(r"[\s,]+", exempt))


def _covers(entry: str, scheme: str, host: str, port: str) -> bool:
    """Whether an entry is about a server: `*`, a domain with all below it, an address or a network (with or without
    brackets), each with a port or without. An entry that is none of these is about nothing, as it is for curl."""
    if entry == "*":
        return True
    of_scheme, _, entry = entry.rpartition("://")
    if of_scheme not in ("", "all", scheme):
        return False
    if bracketed := re.fullmatch(r"\[([^\]]*)\](?::(.*))?", entry):
        name, of_port = bracketed[1], bracketed[2] or ""
    elif entry.count(":") == 1:
        name, _, of_port = entry.partition(":")
    else:
        name, of_port = entry, ""
    if not name or of_port not in ("", port):
        return False
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        # People write a domain as example.com, .example.com and *.example.com.
        domain = name.removeprefix("*").strip(".")
        return bool(domain) and f".{host}".endswith(f".{domain}")
    try:
        return address in ip_network(name, strict=False)
    except ValueError:
        return False


# TLS.


def client_tls(environ: Mapping[str, str], *, cafile: str) -> ssl.SSLContext:
    """TLS for a client that trusts SSL_CERT_FILE, else SSL_CERT_DIR, else the certificates in `cafile`.

    Raises `BadEnvironment` for a file or directory without certificates. Reading takes a fifth of a second, so it
    happens once.
    """
    key_log = environ.get(_KEY_LOG)
    if file := environ.get(_CERT_FILE):
        try:
            return _context(file, None, key_log)
        except OSError as error:
            raise BadEnvironment(_file_problem(file, error)) from None
    if folder := environ.get(_CERT_DIR):
        if problem := _folder_problem(folder):
            raise BadEnvironment(problem)
        return _context(None, folder, key_log)
    return _context(cafile, None, key_log)


def system_tls(environ: Mapping[str, str]) -> ssl.SSLContext:
    """TLS for the server's own requests. It trusts what the system trusts, as OpenSSL finds it: SSL_CERT_FILE and
    SSL_CERT_DIR take the place of the system's file and directory, and what cannot be read is passed over."""
    usual = ssl.get_default_verify_paths()
    file = environ.get(_CERT_FILE) or usual.openssl_cafile
    folder = environ.get(_CERT_DIR) or usual.openssl_capath
    return _context(file, folder, environ.get(_KEY_LOG), is_strict=False)


def _file_problem(file: str, error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{_CERT_FILE}: got {file!r}, expected a file of certificates in PEM form"
    return f"{_CERT_FILE}: cannot read {file!r}: {error.strerror}"


def _folder_problem(folder: str) -> str:
    if any(Path(part).is_dir() for part in folder.split(os.pathsep)):
        return ""
    return f"{_CERT_DIR}: got {folder!r}, expected a directory of certificates"


def certificates_problem(environ: Mapping[str, str]) -> str:
    """What is wrong with SSL_CERT_FILE or SSL_CERT_DIR; empty when nothing is."""
    if file := environ.get(_CERT_FILE):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except OSError as error:
            return _file_problem(file, error)
    folder = environ.get(_CERT_DIR)
    return _folder_problem(folder) if folder else ""


def explained(error: BaseException, environ: Mapping[str, str]) -> str:
    """The words of an error; of a certificate that is not trusted also the variable that may be the reason."""
    said = str(error) or type(error).__name__
    problem = certificates_problem(environ) if isinstance(error, ssl.SSLCertVerificationError) else ""
    return f"{said} ({problem})" if problem else said


@cache
def _context(
    cafile: str | None, capath: str | None, key_log: str | None, *, is_strict: bool = True
) -> ssl.SSLContext:  # fmt: skip
    # What ssl.create_default_context() makes, but for a key log that cannot be written: OpenSSL's own programs and
    # curl go on without it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    for file, folder in ((cafile, None), (None, capath)):
        try:
            if file or folder:
                context.load_verify_locations(file, folder)
        except OSError:
            if is_strict:
                raise
    if key_log:
        with suppress(OSError):
            context.keylog_filename = key_log
    return context
