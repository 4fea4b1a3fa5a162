"""`[auth.jwt]`: the tokens that the server accepts.

This module does not import PyJWT, so a server without tokens starts without PyJWT. Sources: RFC 7518 (JWA), RFC 8725
(best current practices).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from qgstream.auth.claims import ClaimSettings
from qgstream.auth.secrets import Secret
from qgstream.net.addresses import is_loopback

Algorithm = Literal[
    "HS256", "HS384", "HS512",
    "RS256", "RS384", "RS512",
    "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512",
    "EdDSA",
]  # fmt: skip

# RFC 7518 3.2: "A key of the same size as the hash output [...] or larger MUST be used".
MIN_SECRET_BYTES: Mapping[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}


def _check_jwks_url(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # The error does not repeat the URL, which contains a password.
        raise ValueError("got a URL with a user and a password, expected a URL without them")
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        # An attacker who can change the response could sign tokens.
        raise ValueError(f"got {url!r}, expected https:// (http:// is for loopback only)")
    return url


def _is_loopback(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


JwksUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]\S*$"), AfterValidator(_check_jwks_url)]


class JwtSettings(ClaimSettings):
    """`[auth.jwt]`: accepted tokens. HS algorithms need `secret`; others need a public key, JWK file or JWK URL.

    Example::

        import qgstream

        jwt = qgstream.JwtSettings(secret="at-least-32-bytes-that-nobody-guesses", algorithms=["HS256"])
        service = qgstream.Service(qgstream.Hub(), auth=qgstream.AuthSettings(jwt=jwt))
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"secret"})

    algorithms: tuple[Algorithm, ...] = Field(
        min_length=1, description="Algorithms that may sign a token. HS algorithms cannot be mixed with others."
    )
    secret: Secret | None = Field(
        None,
        description='The shared secret of HS algorithms, or {file = "path"}: at least 32 bytes for HS256, 48 for '
        "HS384, 64 for HS512.",
    )
    public_key_file: str | None = Field(None, min_length=1, description="PEM file with the public key.")
    jwks_file: str | None = Field(None, min_length=1, description="File with a JWK set: public keys with their `kid`.")
    jwks_url: JwksUrl | None = Field(None, description="URL of the JWK set; https, or http on the loopback.")
    cookie: str | None = Field(
        None,
        pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
        description="Name of a cookie that may carry the token; unset: no cookie.",
    )

    @field_validator("algorithms")
    @classmethod
    def _check_algorithms(cls, algorithms: tuple[Algorithm, ...]) -> tuple[Algorithm, ...]:
        # RFC 8725 2.1: the server must never use a public key, which is known to everybody, as an HMAC secret.
        if len({algorithm in MIN_SECRET_BYTES for algorithm in algorithms}) > 1:
            raise ValueError(
                f"got {', '.join(algorithms)}, expected only HS algorithms or no HS algorithm: "
                "an attacker could use a public key as the shared secret"
            )
        return algorithms

    @property
    def symmetric(self) -> bool:
        """Whether the key that verifies tokens also signs them."""
        return self.algorithms[0] in MIN_SECRET_BYTES

    @property
    def given(self) -> list[str]:
        """The names of the key sources that are set."""
        sources = ("secret", "public_key_file", "jwks_file", "jwks_url")
        return [name for name in sources if getattr(self, name) is not None]
