from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, ValidationError

from qgstream.auth.jwt_settings import Algorithm
from qgstream.auth.secrets import Secret, SecretFile, SecretSection, load_secret, read_file
from qgstream.auth.signing_keys import VerifyingKey, check_hmac_secret, jwks_keys, load_jwks, load_pem
from qgstream.errors import ConfigError
from tests.signing import Files, jwk, private_key, private_pem, public_pem

RS256: tuple[Algorithm, ...] = ("RS256",)


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.problems


class Vault(SecretSection):
    secret_fields = frozenset({"door", "boxes"})

    door: Secret | None = None
    boxes: dict[str, Secret] = Field({})
    colour: str = "grey"


@pytest.mark.parametrize(
    "values",
    [
        {"dooor": "hunter2"},
        {"boxes": ["hunter2", 7]},
        {"boxes": {"a": "hunter2", "b": 7}},
        {"door": ("hunter2",)},
        {"door": {"fiel": "hunter2"}},
        {"boxes": {"a": {"file": "x", "text": "hunter2"}}},
        "hunter2",
    ],
)
def test_no_validation_error_shows_a_secret(values: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Vault.model_validate(values)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.errors())


def test_a_section_shows_its_secrets_nowhere() -> None:
    vault = Vault.model_validate({"door": "hunter2", "boxes": {"a": {"file": "/run/a"}}, "colour": "red"})
    assert "hunter2" not in f"{vault!r} {vault} {vault.model_dump()} {vault.model_dump_json()}"
    assert vault.colour == "red"
    assert vault.door == SecretStr("hunter2")
    assert vault.boxes == {"a": SecretFile(file="/run/a")}
    assert Vault.model_validate(vault) is vault


@pytest.mark.parametrize("text", ['{"file": "/run/a"}', ' {file = "/run/a"} ', "{file='/run/a'}"])
def test_a_table_written_as_text_is_the_table(text: str) -> None:
    vault = Vault.model_validate({"door": text, "boxes": {"a": text}})
    assert vault.door == SecretFile(file="/run/a")
    assert vault.boxes == {"a": SecretFile(file="/run/a")}


@pytest.mark.parametrize("text", ['{"file": "/run/a"', '{"flie": "/run/a"}', "file", '{"file": ""}', '{"file": "a"} b'])
def test_any_other_text_is_the_secret(text: str) -> None:
    assert Vault.model_validate({"door": text}).door == SecretStr(text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"k", b"k"),
        (b"k\n", b"k"),
        (b"k\r\n", b"k"),
        (b"k\r", b"k\r"),
        (b"k\n\n", b"k\n"),
        (b"\xff\x00", b"\xff\x00"),
    ],
)
def test_one_line_end_of_a_secret_file_is_not_the_secret(content: bytes, expected: bytes) -> None:
    assert load_secret(SecretFile(file="f"), where="w", read_file=Files(f=content)) == expected


def test_a_secret_is_read_from_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes("schlüssel\n".encode())
    assert load_secret(SecretFile(file=str(path)), where="w", read_file=read_file) == "schlüssel".encode()


@pytest.mark.parametrize(
    ("path", "reason"), [("none", "No such file or directory"), (".", "Is a directory"), ("a\0b", "ValueError")]
)
def test_a_file_that_cannot_be_read_is_a_problem_with_its_reason(path: str, reason: str) -> None:
    found = problems(lambda: load_secret(SecretFile(file=path), where="auth.x", read_file=read_file))
    assert found == [f"auth.x.file: cannot read {path!r}: {reason}"]


def test_an_os_error_without_words_is_named_by_its_class() -> None:
    def broken(path: str) -> bytes:
        raise TimeoutError

    found = problems(lambda: load_secret(SecretFile(file="f"), where="w", read_file=broken))
    assert found == ["w.file: cannot read 'f': TimeoutError"]


@pytest.mark.parametrize(("algorithm", "size"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_is_as_long_as_its_hash(algorithm: Algorithm, size: int) -> None:
    assert check_hmac_secret(b"x" * size, (algorithm,), where="w") == b"x" * size
    found = problems(lambda: check_hmac_secret(b"x" * (size - 1), (algorithm,), where="w"))
    assert found == [f"w: got {size - 1} bytes, expected at least {size} for {algorithm} (RFC 7518, 3.2)"]


def test_the_strongest_algorithm_decides_the_length() -> None:
    assert "64 for HS512" in problems(lambda: check_hmac_secret(b"x" * 63, ("HS256", "HS512", "HS384"), where="w"))[0]


@pytest.mark.parametrize("material", [public_pem("rsa"), json.dumps(jwk("rsa", "RS256")).encode()])
def test_a_public_key_is_no_shared_secret(material: bytes) -> None:
    found = problems(lambda: check_hmac_secret(material, ("HS256",), where="w"))
    assert found == ["w: got a PEM, SSH or JWK key, expected a shared secret"]


FITTING = {
    "rsa": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
    "p256": {"ES256"},
    "p384": {"ES384"},
    "p521": {"ES512"},
    "ed25519": {"EdDSA"},
    "ed448": {"EdDSA"},
}
ALGORITHMS = {"HS256", "HS384", "HS512"}.union(*FITTING.values())


@pytest.mark.parametrize("name", FITTING)
def test_a_public_key_fits_its_own_algorithms_only(name: str) -> None:
    key = VerifyingKey(private_key(name).public_key())
    assert {algorithm for algorithm in (*ALGORITHMS, "none", "") if key.fits(algorithm)} == FITTING[name]


def test_a_secret_fits_hmac_only() -> None:
    key = VerifyingKey(b"hunter2")
    assert {algorithm for algorithm in (*ALGORITHMS, "none") if key.fits(algorithm)} == {"HS256", "HS384", "HS512"}
    assert "hunter2" not in repr(key)
    assert key.kind == "secret"


@pytest.mark.parametrize("name", FITTING)
def test_a_pem_file_is_loaded_for_its_algorithms(name: str) -> None:
    algorithms: Any = tuple(FITTING[name])
    key = load_pem("f", algorithms, where="w", read_file=Files(f=public_pem(name)))
    assert all(map(key.fits, algorithms))


@pytest.mark.parametrize(
    ("content", "algorithms", "expected"),
    [
        (b"", RS256, ["w: f is not a PEM public key (-----BEGIN PUBLIC KEY-----)"]),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", RS256, ["w: f is not a PEM public key"]),
        (private_pem("p256"), ("ES256",), ["w: f holds a private key, expected the public one"]),
        (public_pem("dsa"), RS256, ["w: f holds a key of another kind"]),
        (public_pem("short rsa"), RS256, ["w: f holds an RSA key of fewer than 2048 bits (RFC 7518, 3.3)"]),
        (
            public_pem("short rsa"),
            ("RS256", "ES256", "EdDSA"),
            [
                "w: f holds a key of kind RSA, algorithm ES256 expects EC secp256r1",
                "w: f holds a key of kind RSA, algorithm EdDSA expects Ed25519 or Ed448",
                "w: f holds an RSA key of fewer than 2048 bits",
            ],
        ),
        (public_pem("p384"), ("ES256",), ["w: f holds a key of kind EC secp384r1, algorithm ES256 expects EC secp2"]),
    ],
)
def test_a_pem_file_that_cannot_serve_is_refused(
    content: bytes, algorithms: tuple[Algorithm, ...], expected: list[str]
) -> None:
    found = problems(lambda: load_pem("f", algorithms, where="w", read_file=Files(f=content)))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_a_missing_pem_file_is_a_problem() -> None:
    assert problems(lambda: load_pem("f", RS256, where="w", read_file=Files())) == [
        "w: cannot read 'f': No such file or directory"
    ]


UNUSABLE: dict[str, object] = {
    "for encryption": jwk("rsa", "RS256", use="enc"),
    "for signing only": jwk("rsa", "RS256", key_ops=["sign"]),
    "key_ops of a wrong type": jwk("rsa", "RS256", key_ops="verify"),
    "kid of a wrong type": jwk("rsa", "RS256", kid=7),
    "alg of a wrong type": jwk("rsa", "RS256", alg=["RS256"]),
    "for another algorithm": jwk("rsa", "RS256", alg="PS256"),
    "a key for wrapping": jwk("rsa", "RS256", alg="RSA-OAEP"),
    "a private key": jwk("rsa", "RS256", private=True),
    "a secret": {"kty": "oct", "k": "c2VjcmV0" * 10},
    "a short key": jwk("short rsa", "RS256"),
    "a kind from the future": {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AA"},
    "without its numbers": {"kty": "RSA"},
    "with broken numbers": {"kty": "RSA", "n": 5, "e": "AQAB"},
    "a curve that no algorithm has": jwk("p256", "ES256", crv="P-192"),
    "no object": "RSA",
}


@pytest.mark.parametrize("key", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_set_leaves_out_what_it_cannot_use(key: object) -> None:
    good = jwk("other rsa", "RS256", kid="good")
    assert [found.kid for found in jwks_keys({"keys": [key, good]}, RS256, where="w")] == ["good"]
    found = problems(lambda: jwks_keys({"keys": [key]}, RS256, where="w"))
    assert found == ["w: none of the 1 keys can verify a signature of RS256"]


def test_a_member_of_a_key_that_is_null_is_not_there() -> None:
    key = jwk("rsa", "RS256") | dict.fromkeys(("kid", "alg", "use", "key_ops", "x5c", "x5t", "d", "k"))
    (found,) = jwks_keys({"keys": [key]}, RS256, where="w")
    assert (found.kid, found.algorithm) == (None, None)


@pytest.mark.parametrize(("pair", "algorithm"), [("rsa", "RS256"), ("p256", "ES256"), ("ed25519", "EdDSA")])
def test_a_set_leaves_out_private_keys_of_every_kind(pair: str, algorithm: Algorithm) -> None:
    document = {"keys": [jwk(pair, algorithm, private=True)]}
    assert "none of the 1 keys" in problems(lambda: jwks_keys(document, (algorithm,), where="w"))[0]


def test_a_set_keeps_what_a_key_says_of_itself() -> None:
    document = {
        "keys": [jwk("rsa", "RS256", kid="a", alg="RS256", use="sig", key_ops=["verify"]), jwk("p256", "ES256")]
    }
    first, second = jwks_keys(document, ("RS256", "ES256"), where="w")
    assert (first.kid, first.algorithm, first.kind) == ("a", "RS256", "RSA")
    assert first.fits("RS256")
    assert not first.fits("RS384")
    assert (second.kid, second.algorithm, second.kind) == (None, None, "EC secp256r1")


@pytest.mark.parametrize("document", [None, [], "x", {}, {"keys": {}}, {"keys": None}])
def test_what_is_no_set_is_refused(document: object) -> None:
    assert problems(lambda: jwks_keys(document, RS256, where="w")) == [
        'w: expected a JWK set, an object with a list "keys"'
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
JWKS = st.dictionaries(
    st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "k", "d", "p", "q"]),
    st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "ES256", "EdDSA", "AQAB", "sig", ""]) | JSON,
)


@given(st.lists(JWKS | JSON))
def test_no_set_raises_anything_but_a_config_error(keys: list[object]) -> None:
    with suppress(ConfigError):
        assert jwks_keys({"keys": keys}, ("RS256", "ES256", "EdDSA"), where="w")


def test_a_set_is_loaded_from_a_file() -> None:
    files = Files(f=json.dumps({"keys": [jwk("rsa", "RS256", kid="a")]}).encode())
    assert [key.kid for key in load_jwks("f", RS256, where="w", read_file=files)] == ["a"]
    files["f"] = b"\xef\xbb\xbf" + files["f"]  # a byte order mark
    assert [key.kid for key in load_jwks("f", RS256, where="w", read_file=files)] == ["a"]
    assert problems(lambda: load_jwks("f", ("ES256",), where="w", read_file=files)) == [
        "w: f: none of the 1 keys can verify a signature of ES256"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_set_that_is_not_json_is_a_problem(content: bytes) -> None:
    assert problems(lambda: load_jwks("f", RS256, where="w", read_file=Files(f=content))) == ["w: f is not JSON"]
