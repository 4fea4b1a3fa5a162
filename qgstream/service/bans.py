"""Bans of addresses, networks, keys, users and tokens, each until a given time. Pure: the time is an argument.

`now` is in seconds of the monotonic clock, so that a step of the wall clock ends no ban. `unix_now` is only displayed.
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

# This bounds the memory and the list, even when a script adds bans. For many addresses, ban their network or block them
# at the proxy.
MAX_BANS = 1000
MAX_CHARACTERS = 1024  # of a user's name
# Clients are told to reconnect within this time, even if the ban lasts longer: an operator may lift the ban.
MAX_RETRY_SECONDS = 300.0

_EXPECTED = {
    "address": "an IPv4 or IPv6 address (for a network there is the field network)",
    "network": "a network such as 192.0.2.0/24 or 2001:db8::/48, with no bits set after its prefix",
}


@dataclass(frozen=True, slots=True)
class Ban:
    """One ban. `ends_at` is in seconds of the monotonic clock. `expires_at` is the same moment in Unix seconds, or None
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
        """The message for the client."""
        until = "" if self.expires_at is None else f" until {utc_iso(self.expires_at)}"
        what = "credentials are" if self.kind in ("key", "user", "token") else "address is"
        return f"your {what} banned{until}"

    def left_seconds(self, now: float) -> float:
        """Return the seconds until the ban ends; infinity for a ban without an end."""
        return max(0.0, self.ends_at - now)

    def error(self, now: float) -> Banned:
        """Return the error that refuses a request."""
        left = self.left_seconds(now)
        return Banned(self.message, retry_after_seconds=None if left == inf else left)

    def rejection(self, now: float) -> Rejection:
        """Return the rejection that refuses a stream."""
        return Rejection("banned", self.message, True, min(self.left_seconds(now), MAX_RETRY_SECONDS))

    def document(self) -> dict[str, object]:
        """Return the ban as JSON for operators."""
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

    A look-up costs one dictionary access for each kind of ban, and one for each prefix length among the banned
    networks. A look-up removes a ban that has ended.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Ban] = {}
        self._by_value: dict[tuple[BanKind, str], Ban] = {}
        # Keyed by IP version and prefix length, then by the prefix itself as a number.
        self._networks: dict[tuple[int, int], dict[int, Ban]] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Ban]:
        return iter(list(self._by_id.values()))

    def count(self, kind: BanKind, now: float) -> int:
        """Return how many bans of this kind are in effect."""
        return sum(ban.kind == kind and ban.ends_at > now for ban in self._by_id.values())

    def get(self, id: int) -> Ban | None:
        """Return the ban with this id."""
        return self._by_id.get(id)

    def add(
        self, kind: BanKind, value: str, *, reason: str = "", by: str = "", seconds: float | None,
        now: float, unix_now: float,
    ) -> tuple[Ban, bool]:  # fmt: skip
        """Ban a value that `check_value` returned, for `seconds` (None: without an end). Returns the ban, and whether
        the ban is new.

        If the value is banned already, the new end and reason replace the old ones, and the id stays the same. Raises
        `Conflict` when there are too many bans.
        """
        old = self._by_value.get((kind, value))
        if old is None:
            self.purge(now)
            if len(self._by_id) >= MAX_BANS:
                raise Conflict(
                    "bans", f"got {len(self._by_id)} bans already, expected at most {MAX_BANS}: lift some bans"
                )
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
        """Lift a ban and return it; return None if no ban has this id."""
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
        """Remove the bans that have ended."""
        for ban in self:
            if ban.ends_at <= now:
                self.remove(ban.id)

    def find(self, address: str, principal: Principal, now: float) -> Ban | None:
        """Return the ban that applies to this client, or None."""
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
    """Return the normal form of a value to be banned. Raises `InvalidField`; its field is the kind.

    For a `token`, the value is the token's id (`auth.token_id`), or the whole token, of which only the id is kept.
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
        from qgstream.auth.tokens import jti_of  # slow to import

        try:
            return token_id(text, jti_of(text))
        except Unauthorized:
            raise InvalidField(kind, "got a value that looks like a JWT but cannot be decoded") from None
    return text


def _check_network(text: str) -> str:
    try:
        network = parse_network(text, strict=True)
    except ValueError:
        raise InvalidField("network", f"got {text[:100]!r}, expected {_EXPECTED['network']}") from None
    if not network.prefixlen:
        raise InvalidField(
            "network", f"got {text[:100]!r}, which is every address; to refuse all clients, use /admin/maintenance"
        )
    return str(network)
