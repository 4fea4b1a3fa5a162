"""Who is kept away: addresses, networks, keys, users and tokens, each until a time. Pure: the time is an argument.

`now` is in seconds of the monotonic clock, so that no step of the other clock ends a ban; `unix_now` is only shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf

from qgstream.auth.authenticator import Principal, token_id
from qgstream.auth.evidence import MAX_TOKEN_CHARACTERS, looks_like_jwt
from qgstream.errors import Banned, Conflict, InvalidField, Unauthorized
from qgstream.events.topics import check_text
from qgstream.limits import Rejection
from qgstream.logs import utc_iso
from qgstream.net.addresses import parse, parse_network
from qgstream.reasons import BanKind

# Whatever an operator's script does, memory and the list stay small. A crowd of addresses is a network, or work for the
# proxy in front.
MAX_BANS = 1000
MAX_CHARACTERS = 1024  # of a user
# Clients are told to come back within this, however long the ban is: an operator may lift it.
MAX_RETRY_SECONDS = 300.0

_EXPECTED = {
    "address": "an IPv4 or IPv6 address (for a network there is the field network)",
    "network": "a network such as 192.0.2.0/24 or 2001:db8::/48, with no bits set behind its prefix",
}


@dataclass(frozen=True, slots=True)
class Ban:
    """One ban. `ends_at` is in seconds of the monotonic clock. `expires_at` is the same moment in Unix seconds; None
    for a ban without an end."""

    id: int
    kind: BanKind
    value: str
    reason: str
    by: str
    created_at: float
    expires_at: float | None
    ends_at: float

    @property
    def message(self) -> str:
        """What the client is told."""
        until = "" if self.expires_at is None else f" until {utc_iso(self.expires_at)}"
        what = "credentials are" if self.kind in ("key", "user", "token") else "address is"
        return f"your {what} banned{until}"

    def left_seconds(self, now: float) -> float:
        """How long it lasts from now on; infinity without an end."""
        return max(0.0, self.ends_at - now)

    def error(self, now: float) -> Banned:
        """The refusal of a request."""
        left = self.left_seconds(now)
        return Banned(self.message, retry_after_seconds=None if left == inf else left)

    def rejection(self, now: float) -> Rejection:
        """The refusal of a stream."""
        return Rejection("banned", self.message, True, min(self.left_seconds(now), MAX_RETRY_SECONDS))

    def document(self) -> dict[str, object]:
        """As an operator sees it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "value": self.value,
            "reason": self.reason,
            "by": self.by,
            "created_at": utc_iso(self.created_at),
            "expires_at": None if self.expires_at is None else utc_iso(self.expires_at),
        }


class Bans:
    """The bans of one process, at most `MAX_BANS`.

    A look-up costs one access of a dictionary for each kind, and one for each length of prefix among the networks. A
    look-up removes a ban that is over.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Ban] = {}
        self._by_value: dict[tuple[BanKind, str], Ban] = {}
        # By version and length of the prefix, then by the prefix itself, as a number.
        self._networks: dict[tuple[int, int], dict[int, Ban]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Ban]:
        return iter(list(self._by_id.values()))

    def count(self, kind: BanKind, now: float) -> int:
        """How many of this kind hold."""
        return sum(ban.kind == kind and ban.ends_at > now for ban in self._by_id.values())

    def get(self, id: int) -> Ban | None:
        """The ban with this id."""
        return self._by_id.get(id)

    def add(
        self, kind: BanKind, value: str, *, reason: str = "", by: str = "", seconds: float | None,
        now: float, unix_now: float,
    ) -> tuple[Ban, bool]:  # fmt: skip
        """Ban a value of `check_value` for so many seconds (None: without an end). Returns the ban, and whether it is
        new: of what is banned already, end and reason are replaced, and the id stays.

        Raises `Conflict` when there are too many.
        """
        old = self._by_value.get((kind, value))
        if old is None:
            self.purge(now)
            if len(self._by_id) >= MAX_BANS:
                raise Conflict("bans", f"got {len(self._by_id)} bans already, expected at most {MAX_BANS}: lift some")
            self._last_id += 1
        ban = Ban(
            self._last_id if old is None else old.id, kind, value, reason, by, unix_now,
            None if seconds is None else unix_now + seconds, inf if seconds is None else now + seconds,
        )  # fmt: skip
        self._by_id[ban.id] = self._by_value[kind, value] = ban
        if kind == "network":
            table, prefix = _place(value)
            self._networks.setdefault(table, {})[prefix] = ban
        return ban, old is None

    def remove(self, id: int) -> Ban | None:
        """Lift a ban; returns it, or None when there is none with this id."""
        ban = self._by_id.pop(id, None)
        if ban is None:
            return None
        del self._by_value[ban.kind, ban.value]
        if ban.kind == "network":
            table, prefix = _place(ban.value)
            del self._networks[table][prefix]
            if not self._networks[table]:
                del self._networks[table]
        return ban

    def purge(self, now: float) -> None:
        """Remove those that are over."""
        for ban in self:
            if ban.ends_at <= now:
                self.remove(ban.id)

    def find(self, address: str, principal: Principal, now: float) -> Ban | None:
        """The ban that keeps this client away; None without one."""
        values: tuple[tuple[BanKind, str | None], ...] = (
            ("address", address), ("key", principal.key_name), ("user", principal.user), ("token", principal.token_id),
        )  # fmt: skip
        for kind, value in values:
            if value is not None:
                ban = self._if_it_holds(self._by_value.get((kind, value)), now)
                if ban is not None:
                    return ban
        return self._find_network(address, now) if self._networks else None

    def _find_network(self, address: str, now: float) -> Ban | None:
        try:
            parsed = ip_address(address)
        except ValueError:
            return None
        number, version, bits = int(parsed), parsed.version, parsed.max_prefixlen
        for (of_version, length), prefixes in list(self._networks.items()):
            if of_version == version:
                ban = self._if_it_holds(prefixes.get(number >> (bits - length)), now)
                if ban is not None:
                    return ban
        return None

    def _if_it_holds(self, ban: Ban | None, now: float) -> Ban | None:
        if ban is not None and ban.ends_at <= now:
            self.remove(ban.id)
            return None
        return ban


def _place(network: str) -> tuple[tuple[int, int], int]:
    parsed = parse_network(network)
    return (parsed.version, parsed.prefixlen), int(parsed.network_address) >> (parsed.max_prefixlen - parsed.prefixlen)


def check_value(kind: BanKind, value: object) -> str:
    """The one form of what is to be banned. Raises `InvalidField`, whose field is the kind.

    For `token` this is its id (`auth.token_id`), or the whole token, of which only the id is kept.
    """
    text = check_text(kind, value, max_characters=MAX_TOKEN_CHARACTERS if kind == "token" else MAX_CHARACTERS)
    if kind == "address":
        address = parse(text)
        if address is None:
            raise InvalidField(kind, f"got {text[:100]!r}, expected {_EXPECTED[kind]}")
        return str(address)
    if kind == "network":
        return _check_network(text)
    if kind == "token" and looks_like_jwt(text):
        from qgstream.auth.tokens import jti_of  # it takes long to import

        try:
            return token_id(text, jti_of(text))
        except Unauthorized:
            raise InvalidField(kind, "got what looks like a JWT and cannot be decoded") from None
    return text


def _check_network(text: str) -> str:
    try:
        network = parse_network(text, strict=True)
    except ValueError:
        raise InvalidField("network", f"got {text[:100]!r}, expected {_EXPECTED['network']}") from None
    if not network.prefixlen:
        raise InvalidField(
            "network", f"got {text[:100]!r}, which is every address; to turn everybody away use /admin/maintenance"
        )
    return str(network)
