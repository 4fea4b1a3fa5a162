"""Data about a token that needs no PyJWT: its form, the results of the checks, and why the token was accepted.

This module does not import PyJWT, so a server without tokens starts without PyJWT. Source: RFC 7515 (JWS).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from qgstream.auth.signing_keys import VerifyingKey

# Twice the size of a header line in nginx (8 KiB). A longer token is not decoded.
MAX_TOKEN_CHARACTERS = 16 * 1024

# RFC 7515 7.1: three base64url parts. With alg "none" the last part is empty, and another check refuses such a token.
_FORM = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*")


class Check(NamedTuple):
    """One step of a verification: its name, whether it passed, and the finding."""

    check: str
    ok: bool
    detail: str


class Evidence(NamedTuple):
    """Why a token was accepted, without the token itself. After a reload the server uses this evidence to judge the
    token again.

    `named` holds `aud` and `iss`, if the token has them; `claim` is the name of the claim with the grants.
    """

    key: VerifyingKey
    algorithm: str
    named: dict[str, Any]
    claim: str
    by_cookie: bool = False


def looks_like_jwt(token: str) -> bool:
    """Whether the text has the three parts of a JWT; a mistyped key does not."""
    return _FORM.fullmatch(token) is not None
