"""Authentication and authorization: credentials in, principal out. Pure: the time is an argument.

A key is a secret that the operator chose. A token is a JWT from an issuer that holds the signing key. A client without
credentials is anonymous, which is enough for public topics. Source for the bearer token: RFC 6750, section 2.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, SecretStr, Tag, field_validator

from qgstream.auth.claims import Claims
from qgstream.auth.evidence import MAX_TOKEN_CHARACTERS, Check, Evidence, looks_like_jwt
from qgstream.auth.jwt_settings import JwtSettings
from qgstream.auth.secrets import ReadFile, Secret, SecretFile, SecretSection, load_secret, read_file
from qgstream.errors import ConfigError, Forbidden, InvalidField, Unauthorized, Unavailable, UnknownKeyId
from qgstream.events.namespaces import namespace
from qgstream.events.topics import check_pattern, matches_any, may_ask

if TYPE_CHECKING:
    from qgstream.auth.signing_keys import VerifyingKey
    from qgstream.auth.tokens import TokenVerifier

Kind = Literal["anonymous", "publish_key", "admin_key", "token"]
Source = Literal["none", "header", "query", "cookie"]

EVERY_TOPIC = "*"

# A limit, because each open stream holds the id of its token.
MAX_TOKEN_ID_CHARACTERS = 256

# Logs and responses show the name of a key instead of the key.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

# The generated name of a key in a list. The name depends on the place, which changes when another key is inserted
# before.
_NAME_BY_PLACE = re.compile(r"key-[0-9]+")

# Clients send a key in a header. A key with characters that HTTP strips or rejects in headers could never match.
_NOT_IN_A_HEADER = re.compile(r"[\s\x00-\x1f\x7f]")

# Schemes that a proxy in front checks and forwards. Any other scheme is meant for this server, and is an error.
_SCHEMES_OF_PROXIES = frozenset({"basic", "digest", "negotiate", "ntlm"})


def _form_of(value: object) -> str:
    return "(list)" if isinstance(value, list | tuple) else "(key)"


# While a key is rotated, the old key and the new key are valid under one name.
Secrets = Annotated[
    Annotated[Secret, Tag("(key)")] | Annotated[tuple[Secret, ...], Field(min_length=1), Tag("(list)")],
    Discriminator(_form_of),
]


class AuthSettings(SecretSection):
    """`[auth]`: the keys that may publish and administer, and the private topics.

    Example::

        import qgstream

        auth = qgstream.AuthSettings(publish_keys={"shop": "a-long-secret"}, private_topics=["users/*"])
        service = qgstream.Service(qgstream.Hub(), auth=auth)
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"publish_keys", "admin_keys"})

    publish_keys: dict[str, Secrets] = Field(
        {},
        description='Keys that may publish and subscribe to everything: name = "key" or name = {file = "path"}, or a '
        "list of these during a rotation. Keys in a list without names get the names key-1, key-2 and so on.",
    )
    admin_keys: dict[str, Secrets] = Field(
        {}, description="Keys for /admin, in the same form. They can neither publish nor get private topics."
    )
    private_topics: tuple[str, ...] = Field(
        (), description="Topic names, or prefixes ending in '*', whose events go only to subscribers with a grant."
    )
    jwt: JwtSettings | None = Field(None, description="How tokens (JWT) are verified; unset: only keys are accepted.")

    @field_validator("publish_keys", "admin_keys", mode="before")
    @classmethod
    def _name_keys(cls, keys: Any) -> Any:
        if isinstance(keys, str | SecretStr):
            keys = [keys]
        if isinstance(keys, list | tuple):
            return {f"key-{number}": key for number, key in enumerate(keys, 1)}
        return keys

    @field_validator("publish_keys", "admin_keys")
    @classmethod
    def _check_names(cls, keys: dict[str, Secrets]) -> dict[str, Secrets]:
        # The error does not show the name: if the user swapped name and key, the name is a key.
        for number, name in enumerate(keys, 1):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name of key {number} is not 1 to 64 of A-Z a-z 0-9 _ . - (letter or digit first)"
                )
        return keys

    @field_validator("private_topics")
    @classmethod
    def _check_private_topics(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                check_pattern(pattern, field="pattern")
            except InvalidField as error:
                raise ValueError(str(error)) from None
        return patterns


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a request: the Authorization header, `?access_token=` and the cookie named by
    `auth.jwt.cookie`.

    The first of them in this order counts; the others are ignored, even if they are invalid. An empty value counts as
    missing, because many sites empty a cookie at logout.
    """

    authorization: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)
    cookie: str | None = field(default=None, repr=False)

    @property
    def source(self) -> Source:
        """The source of the credentials. A POST with a cookie needs a check of its Origin: any page can send such a
        request."""
        if self.authorization and _scheme(self.authorization) not in _SCHEMES_OF_PROXIES:
            return "header"
        if self.access_token:
            return "query"
        return "cookie" if self.cookie else "none"

    @property
    def token(self) -> str | None:
        """The key or token that counts; None if there is none. Raises `Unauthorized` for a header that is not a bearer
        token."""
        source = self.source
        if source == "query":
            return self.access_token
        if source == "cookie":
            return self.cookie
        if source == "none" or self.authorization is None:
            return None
        # RFC 9110 11.1: the scheme is case-insensitive.
        if _scheme(self.authorization) != "bearer":
            raise Unauthorized("Authorization: expected 'Bearer' and a key or token", code="wrong_scheme")
        return _as_sent(self.authorization.strip(" ")[len("bearer") :].strip(" "))


@dataclass(frozen=True, slots=True)
class Principal:
    """The client that authenticated.

    `name` is the name of a key or the subject of a token, and may be logged. `publish` and `subscribe` are patterns.
    `expires_at` (unix seconds) is the time from which the credentials are invalid; a stream ends at this time. None
    means never. `identity` is unique for each client; a name is not, because two issuers may use the same subject.
    `evidence` is the input of `Authenticator.still_accepts`: the digest of a key, or the reason why a token was
    accepted. `token_id` identifies a single token, see the function `token_id`.
    """

    name: str
    kind: Kind
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    expires_at: float | None = None
    identity: tuple[str, ...] = field(default=(), compare=False, repr=False)
    evidence: bytes | Evidence | None = field(default=None, repr=False, compare=False)
    token_id: str | None = field(default=None, repr=False, compare=False)

    @property
    def key_name(self) -> str | None:
        """The name of the publish key; None for every other principal."""
        return self.name if self.kind == "publish_key" else None

    @property
    def user(self) -> str | None:
        """The subject (`sub`) of the token; None without one."""
        return self.name if self.kind == "token" and len(self.identity) == _PARTS_WITH_SUBJECT else None

    @property
    def namespace(self) -> bytes:
        """The namespace of this publisher's idempotency keys and rates."""
        return namespace(*(self.identity or (self.kind, self.name)))

    @property
    def is_by_cookie(self) -> bool:
        """Whether the token came from a cookie, which a browser sends with the requests of every page."""
        return isinstance(self.evidence, Evidence) and self.evidence.by_cookie

    def may_publish(self, topic: str) -> bool:
        """Whether the grants allow publishing to this topic."""
        return matches_any(self.publish, topic)

    def may_subscribe(self, pattern: str, private_topics: Iterable[str]) -> bool:
        """Whether this principal may subscribe to this pattern; see `topics.may_ask`."""
        return may_ask(pattern, self.subscribe, private_topics)

    def require_publish(self, topics: Iterable[str]) -> None:
        """Raise `Unauthorized` (anonymous) or `Forbidden` unless the principal may publish to all topics."""
        for topic in topics:
            if not self.may_publish(topic):
                raise self._refusal(f"publish to {topic!r}")

    def require_subscribe(self, patterns: Iterable[str], private_topics: Iterable[str]) -> None:
        """Raise `Unauthorized` (anonymous) or `Forbidden` unless the principal may subscribe to all patterns."""
        private_topics = tuple(private_topics)
        for pattern in patterns:
            if not self.may_subscribe(pattern, private_topics):
                raise self._refusal(f"subscribe to {pattern!r}")

    def require_admin(self) -> None:
        """Raise `Unauthorized` (anonymous) or `Forbidden` unless the principal is an admin key."""
        if self.kind != "admin_key":
            raise self._refusal("use the admin interface")

    def _refusal(self, what: str) -> Unauthorized | Forbidden:
        if self.kind == "anonymous":
            return Unauthorized(f"got no credentials, expected credentials that may {what}", code="missing_credentials")
        return Forbidden(f"{self.kind} {self.name!r} may not {what}")


ANONYMOUS = Principal("anonymous", "anonymous")


class Authenticator:
    """Authenticates clients with one `[auth]`. A reload builds a new instance; operators rotate keys this way.

    Reads the files that the settings name once. Raises `ConfigError` with every problem found.
    """

    def __init__(self, settings: AuthSettings, *, read_file: ReadFile = read_file) -> None:
        self.settings = settings
        problems: list[str] = []
        # SHA-256 of each key. All digests have the same length, so a comparison takes the same time for every key.
        self._keys: dict[bytes, Principal] = {}
        self._tokens: TokenVerifier | None = None
        # The verifier for a new `jwks_url` whose keys have not arrived. Until they arrive, `_tokens` is the old
        # verifier.
        self._coming: TokenVerifier | None = None
        # Called when a token names a key that is not in the set: the issuer may have rotated its keys. The argument is
        # the time (unix seconds) at which the token claims to have been issued. Returns whether the next set may
        # contain the key.
        self.on_unknown_key_id: Callable[[float | None], bool] = lambda _issued_at: False
        places: dict[bytes, str] = {}
        for where, secret, principal in _principals(settings):
            try:
                digest = _load_digest(secret, where=where, read_file=read_file)
            except ConfigError as error:
                problems += error.problems
                continue
            if digest in places:
                problems.append(f"{where}: got the same key as {places[digest]}, expected a different key")
            places.setdefault(digest, where)
            if _NAME_BY_PLACE.fullmatch(principal.name):
                principal = replace(principal, identity=(principal.kind, "", digest.hex()))
            self._keys[digest] = replace(principal, evidence=digest)
        if settings.jwt is not None:
            from qgstream.auth.tokens import TokenVerifier  # a slow import

            try:
                self._tokens = TokenVerifier(settings.jwt, read_file=read_file)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def authenticate(self, credentials: Credentials, now: float) -> Principal:
        """Authenticate the client at `now` (unix seconds). A request without credentials is anonymous.

        Raises `Unauthorized` for invalid credentials. The code of the error says which check failed; the message
        repeats nothing of the credentials. Raises `Unavailable` while the answer is unknown: before the first JWK set
        has arrived, and for a token that is newer than the set and names a key outside the set. A cookie may hold a
        token but not a key, because keys do not expire.
        """
        token = credentials.token
        if token is None:
            return ANONYMOUS
        by_cookie = credentials.source == "cookie"
        principal = None if by_cookie else self._match(token)
        if principal is not None:
            return principal
        if self._tokens is None:
            raise Unauthorized("credentials: got an unknown key", code="unknown_key")
        if not by_cookie and not looks_like_jwt(token):
            raise Unauthorized("credentials: got neither a known key nor a JWT", code="unknown_key")
        try:
            claims, evidence = self._tokens.verify(token, now)
        except UnknownKeyId as error:
            if self.on_unknown_key_id(self._believed(error.issued_at, now)):
                said = f"{error}, but newer keys are being fetched"
                raise Unavailable(said, retry_after_seconds=5, code="auth_unavailable") from None
            raise
        return Principal(
            claims.subject or "token", "token", claims.publish, claims.subscribe, claims.expires_at,
            _identity(token, claims),
            evidence._replace(by_cookie=by_cookie) if by_cookie else evidence,
            token_id(token, claims.values.get("jti")),
        )  # fmt: skip

    def still_accepts(self, principal: Principal) -> bool:
        """Whether the credentials of this principal, which earlier settings may have accepted, are still valid.

        This method does not check when a token expires.
        """
        evidence = principal.evidence
        if isinstance(evidence, bytes):
            known = self._keys.get(evidence)
            return known is not None and known.kind == principal.kind  # the name of the key may have changed
        if isinstance(evidence, Evidence):
            return self._tokens is not None and self._tokens.still_accepts(evidence)
        return True

    def _believed(self, issued_at: float | None, now: float) -> float | None:
        # The issuer's clock may be behind this server's clock by the leeway, and no genuine token is from the future.
        leeway = self.settings.jwt.leeway_seconds if self.settings.jwt is not None else 0.0
        return None if issued_at is None or issued_at > now + leeway else issued_at + leeway

    def explain(self, token: str, now: float) -> list[Check]:
        """Return every check of a key or token with its outcome, for the holder of the key or token."""
        principal = self._match(token)
        if principal is not None:
            return [Check("key", True, f"{principal.kind} {principal.name!r}")]
        if self._tokens is None:
            return [Check("key", False, "not one of the keys, and auth.jwt is not set")]
        return self._tokens.explain(token, now)

    @property
    def takes_publishers(self) -> bool:
        """Whether credentials exist that may publish: a publish key is configured, or tokens are accepted."""
        return bool(self.settings.publish_keys) or self.settings.jwt is not None

    def is_publish_key(self, text: str) -> bool:
        """Whether this text is one of the publish keys."""
        found = self._match(text)
        return found is not None and found.kind == "publish_key"

    def replace_jwks(self, document: object) -> int:
        """Use a JWK set fetched from `auth.jwt.jwks_url`; see `TokenVerifier.replace_jwks`."""
        tokens = self._coming or self._tokens
        if tokens is None:
            raise ConfigError(["auth.jwt: not set, so no key set is expected"])
        count = tokens.replace_jwks(document)
        self._tokens, self._coming = tokens, None
        return count

    def keep_tokens_of(self, old: Authenticator) -> None:
        """Until `replace_jwks` receives the first key set, verify tokens with the settings and the keys of `old`."""
        if self._tokens is not None and old.token_keys is not None:
            self._tokens, self._coming = old._tokens, self._tokens

    @property
    def awaits_keys(self) -> bool:
        """Whether tokens are still verified with the settings before a reload, because the new key set has not
        arrived."""
        return self._coming is not None

    @property
    def token_keys(self) -> tuple[VerifyingKey, ...] | None:
        """The keys that verify tokens; None without `auth.jwt`, or until the key set has arrived."""
        return None if self._tokens is None else self._tokens.keys

    def key_names(self) -> dict[tuple[str, bytes], str]:
        """The setting of each key, such as `auth.publish_keys.orders`, by kind and digest."""
        return {
            (principal.kind, digest): f"auth.{principal.kind}s.{principal.name}"
            for digest, principal in self._keys.items()
        }

    def _match(self, token: str) -> Principal | None:
        digest = _digest(token.encode("utf-8", "surrogatepass"))
        found = None
        # No early exit: the duration must not reveal which key matched or how close a guess was.
        for known, principal in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = principal
        return found


def _principals(settings: AuthSettings) -> Iterable[tuple[str, SecretStr | SecretFile, Principal]]:
    everything = (EVERY_TOPIC,)
    for name, keys in settings.publish_keys.items():
        for where, secret in _each(f"auth.publish_keys.{name}", keys):
            yield where, secret, Principal(name, "publish_key", everything, everything)
    for name, keys in settings.admin_keys.items():
        for where, secret in _each(f"auth.admin_keys.{name}", keys):
            yield where, secret, Principal(name, "admin_key")


def secrets_of(settings: AuthSettings) -> Iterator[tuple[str, SecretStr | SecretFile]]:
    """Return every secret in the settings with the name of its setting, such as `auth.publish_keys.orders`."""
    for where, secret, _ in _principals(settings):
        yield where, secret
    if settings.jwt is not None and settings.jwt.secret is not None:
        yield "auth.jwt.secret", settings.jwt.secret


def _each(where: str, keys: Secrets) -> Iterable[tuple[str, SecretStr | SecretFile]]:
    if isinstance(keys, tuple):
        return [(f"{where}[{index}]", secret) for index, secret in enumerate(keys)]
    return [(where, keys)]


_PARTS_WITH_SUBJECT = 3  # the parts of `Principal.identity`: "token", the issuer, the subject


def token_id(token: str, jti: object) -> str:
    """Return the id of a single token: its `jti` if that is a text of at most `MAX_TOKEN_ID_CHARACTERS`. Otherwise the
    id is the SHA-256 of the signed part of the token, in hexadecimal."""
    if isinstance(jti, str) and 0 < len(jti) <= MAX_TOKEN_ID_CHARACTERS:
        return jti
    return _digest_of_signed(token)


def _digest_of_signed(token: str) -> str:
    # Without the signature, which has several valid encodings.
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def _identity(token: str, claims: Claims) -> tuple[str, ...]:
    issuer = claims.values.get("iss")
    issuer = issuer if isinstance(issuer, str) else ""
    if claims.subject is not None:
        return "token", issuer, claims.subject
    # The token has no subject. The digest of the signed part identifies its holder.
    return "token", issuer, "", _digest_of_signed(token)


def _load_digest(secret: SecretStr | SecretFile, *, where: str, read_file: ReadFile) -> bytes:
    key = load_secret(secret, where=where, read_file=read_file)
    try:
        text = key.decode()
    except UnicodeDecodeError:
        raise ConfigError([f"{where}: got bytes that are not UTF-8, expected text"]) from None
    if not 1 <= len(text) <= MAX_TOKEN_CHARACTERS:
        raise ConfigError([f"{where}: got {len(text)} characters, expected 1 to {MAX_TOKEN_CHARACTERS}"])
    if _NOT_IN_A_HEADER.search(text):
        raise ConfigError([f"{where}: got white space or a control character, which no header can carry"])
    return _digest(key)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _scheme(authorization: str) -> str:
    return authorization.strip(" ").partition(" ")[0].lower()


def _as_sent(header: str) -> str:
    """Return the text of a header value. HTTP servers decode the bytes as Latin-1, but clients send UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header
