"""Certificates and private keys from files, for servers and for clients with a client certificate."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from qgstream.logs import log


class KeyIsEncrypted(OSError):
    """The private key needs a pass phrase. Without this check, OpenSSL prompts on the terminal and blocks the
    process."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            f"the key in {path} is encrypted, expected one without a pass phrase "
            f"(openssl pkey -in {path} -out NEW_FILE writes it, readable by the server alone)"
        )


def load_cert_chain(context: ssl.SSLContext, certfile: str | Path, keyfile: str | Path | None = None) -> None:
    """Call `SSLContext.load_cert_chain` without a prompt for a pass phrase. Raises `OSError` for unusable files."""

    def refuse() -> NoReturn:
        raise KeyIsEncrypted(keyfile or certfile)

    try:
        context.load_cert_chain(certfile, keyfile, password=refuse)
    except ValueError as error:  # a NUL in a path
        raise OSError(str(error)) from None


def validity(certfile: str | Path) -> tuple[float, float]:
    """Return the start and the end of the time in which all certificates of a chain are valid, in Unix seconds.

    Raises `OSError` or `ValueError` if the dates in the file cannot be read.
    """
    from cryptography import x509  # a slow import, and most servers have no certificate

    chain = x509.load_pem_x509_certificates(Path(certfile).read_bytes())
    begins = max(certificate.not_valid_before_utc.timestamp() for certificate in chain)
    return begins, min(certificate.not_valid_after_utc.timestamp() for certificate in chain)


def expires_at(certfile: str | Path) -> float | None:
    """Return when the chain expires: the earliest expiry date of its certificates, in Unix seconds.

    Returns None and logs a warning if the dates in the file cannot be read. OpenSSL accepts some files that this parser
    rejects, so an unreadable date does not stop the server.
    """
    try:
        return validity(certfile)[1]
    except (OSError, ValueError) as error:
        log.warning("certificate.unreadable", extra={"path": str(certfile), "reason": str(error)})
        return None
