"""Certificates and their keys from files, for servers and for clients that show one."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from qgstream.logs import log


class KeyIsEncrypted(OSError):
    """A private key that needs a pass phrase. Left alone, OpenSSL asks for it on the terminal and holds the process."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            f"the key in {path} is encrypted, expected one without a pass phrase "
            f"(openssl pkey -in {path} -out NEW_FILE writes it, readable by the server alone)"
        )


def load_cert_chain(context: ssl.SSLContext, certfile: str | Path, keyfile: str | Path | None = None) -> None:
    """`SSLContext.load_cert_chain`, which asks nobody for a pass phrase. Raises `OSError` for what cannot be used."""

    def refuse() -> NoReturn:
        raise KeyIsEncrypted(keyfile or certfile)

    try:
        context.load_cert_chain(certfile, keyfile, password=refuse)
    except ValueError as error:  # a NUL in a path
        raise OSError(str(error)) from None


def validity(certfile: str | Path) -> tuple[float, float]:
    """From when until when all certificates of a chain are valid, in Unix seconds. Raises `OSError` or `ValueError` for
    a file whose dates cannot be read."""
    from cryptography import x509  # takes longer than the rest of this module, and most servers show no certificate

    chain = x509.load_pem_x509_certificates(Path(certfile).read_bytes())
    begins = max(certificate.not_valid_before_utc.timestamp() for certificate in chain)
    return begins, min(certificate.not_valid_after_utc.timestamp() for certificate in chain)


def expires_at(certfile: str | Path) -> float | None:
    """Until when a chain is valid: the earliest date of its certificates, in Unix seconds.

    None, with a line of the log, for a file whose dates cannot be read. OpenSSL takes some that this parser does not,
    so such a file stops nobody.
    """
    try:
        return validity(certfile)[1]
    except (OSError, ValueError) as error:
        log.warning("certificate.unreadable", extra={"path": str(certfile), "reason": str(error)})
        return None
