"""Environment variables for HTTP clients: the proxy to a server, and the certificates that TLS trusts.

The environment is an argument. A variable is read only for a URL that needs the variable, so a broken variable does not
affect other URLs. (httpx reads all variables when a client is created, and raises for any that is malformed.) The
variables are those of curl and OpenSSL: https://everything.curl.dev/usingcurl/proxies/env.html and
SSL_CTX_load_verify_locations(3).
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
    """A required environment variable has an unusable value. The message names the variable."""

    code = "bad_environment"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that configures the proxy. `port` is None for the default port of the scheme."""

    variable: str
    scheme: str
    host: str
    port: int | None = None
    username: str = ""
    password: str = field(default="", repr=False)


def proxy_for(scheme: str, host: str, port: int | None, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy to a server, or None for a direct connection. `host` has no brackets.

    `http_proxy` or `https_proxy` comes first, then `all_proxy`, unless `no_proxy` matches the server. Each name may
    also be in capitals. Raises `BadEnvironment` for a value that is not the URL of a proxy.
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
    """Return a variable and its value. The lower-case name wins, even with an empty value: an empty value disables a
    proxy."""
    upper = name.upper()
    # CVE-2016-5385: in a CGI program, HTTP_PROXY holds the client's `Proxy:` header.
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
    """Return the error for a value that is not a URL. The error does not repeat the value, which may hold a
    password."""
    return BadEnvironment(f"{variable}: got a value that is not a URL, expected http://HOST:PORT")


# NO_PROXY.


def _is_exempt(exempt: str, scheme: str, host: str, port: str) -> bool:
    return any(_covers(entry.lower(), scheme, host, port) for entry in re.split(r"[\s,]+", exempt))


def _covers(entry: str, scheme: str, host: str, port: str) -> bool:
    """Whether an entry of NO_PROXY matches a server.

    An entry is `*`, a domain with its subdomains, an address or a network (with or without brackets), each with or
    without a port. As in curl, any other entry matches nothing.
    """
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
        # Users write a domain as example.com, .example.com or *.example.com.
        domain = name.removeprefix("*").strip(".")
        return bool(domain) and f".{host}".endswith(f".{domain}")
    try:
        return address in ip_network(name, strict=False)
    except ValueError:
        return False


# TLS.


def client_tls(environ: Mapping[str, str], *, cafile: str) -> ssl.SSLContext:
    """TLS for a client that trusts SSL_CERT_FILE, then SSL_CERT_DIR, then the certificates in `cafile`.

    Raises `BadEnvironment` for a file or directory without certificates. Loading takes a fifth of a second, so create
    the context once.
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
    """TLS for requests that the server itself sends.

    The context trusts the system's certificates as OpenSSL finds them: SSL_CERT_FILE and SSL_CERT_DIR replace the
    system's file and directory. Unreadable files are skipped.
    """
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
    """Describe the problem with SSL_CERT_FILE or SSL_CERT_DIR; empty if there is no problem."""
    if file := environ.get(_CERT_FILE):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except OSError as error:
            return _file_problem(file, error)
    folder = environ.get(_CERT_DIR)
    return _folder_problem(folder) if folder else ""


def explained(error: BaseException, environ: Mapping[str, str]) -> str:
    """Describe an error. For an untrusted certificate, the text also names the variable that may be the cause."""
    said = str(error) or type(error).__name__
    problem = certificates_problem(environ) if isinstance(error, ssl.SSLCertVerificationError) else ""
    return f"{said} ({problem})" if problem else said


@cache
def _context(
    cafile: str | None, capath: str | None, key_log: str | None, *, is_strict: bool = True
) -> ssl.SSLContext:  # fmt: skip
    # The same as ssl.create_default_context(), except that an unwritable key log is ignored, as in OpenSSL's programs
    # and curl.
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
