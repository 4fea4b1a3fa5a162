"""Key pairs and tokens for the tests of authentication; made once a run, because RSA takes its time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

NOW = 1_800_000_000.0
SECRET = "a secret of the tests, long enough for HS512: 64 bytes or more of it"

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)
MAKERS: dict[str, Callable[[], PrivateKey]] = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "other rsa": lambda: rsa.generate_private_key(65537, 2048),
    "short rsa": lambda: rsa.generate_private_key(65537, 1024),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "other p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    "dsa": lambda: dsa.generate_private_key(1024),
}


@cache
def private_key(name: str) -> Any:
    return MAKERS[name]()


def public_pem(name: str) -> bytes:
    key: PrivateKey = private_key(name)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(name: str) -> bytes:
    key: PrivateKey = private_key(name)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(name: str, algorithm: str, *, private: bool = False, **members: Any) -> dict[str, Any]:
    """The JWK of a key pair, without `alg`; `members` are put over it."""
    key = private_key(name) if private else private_key(name).public_key()
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key))
    made.pop("key_ops", None)
    return made | members


def payload(**claims: Any) -> dict[str, Any]:
    """Claims that are accepted at NOW; a claim of None is left out."""
    made = {"sub": "ann", "exp": NOW + 60, "qgstream": {"publish": ["a*"], "subscribe": ["b"]}} | claims
    return {name: value for name, value in made.items() if value is not None}


def sign(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm, headers=headers)


def encoded(part: object) -> str:
    """A part of a token made by hand: JSON, or bytes as they are, in base64url."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Files(dict[str, bytes]):
    """Files by path; the class is a `read_file`."""

    def __call__(self, path: str) -> bytes:
        if path not in self:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self[path]
