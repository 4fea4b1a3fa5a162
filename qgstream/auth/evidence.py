"""What is known of a token before and after PyJWT has read it: its form, the checks, and why it was accepted.

Nothing here imports PyJWT: a server without tokens starts without it. Source: RFC 7515 (JWS).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from qgstream.auth.signing_keys import VerifyingKey

# Twice what nginx takes as one header line (8 KiB). Nothing longer is decoded.
MAX_TOKEN_CHARACTERS = 16 * 1024

# RFC 7515 7.1: three base64url parts. The last is empty with alg "none", which deserves its own refusal.
_FORM = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*")


class Check(NamedTuple):
    """One step of a verification: its name, whether it passed, and what was found."""

    check: str
    ok: bool
    detail: str


class Evidence(NamedTuple):
    """Why a token was accepted, without the token itself: what is needed to judge it again when the settings change.

    `named` has its `aud` and `iss`, where it has them; `claim` is where its grants were read.
    """

    key: VerifyingKey
    algorithm: str
    named: dict[str, Any]
    claim: str
    by_cookie: bool = False


def looks_like_jwt(token: str) -> bool:
    """Whether it has the three parts of a JWT; a key that somebody mistyped has not."""
    return _FORM.fullmatch(token) is not None
