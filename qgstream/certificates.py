"""Certificates and their keys from files, for servers and for clients that show one."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn


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
