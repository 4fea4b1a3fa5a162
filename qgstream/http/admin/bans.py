"""`/admin/bans`: the bans, with their ends and reasons."""

from __future__ import annotations

import time
from typing import Any

from qgstream.errors import Conflict, InvalidField, NotFound
from qgstream.events.topics import check_text
from qgstream.http.admin.base import AdminHandler
from qgstream.reasons import BAN_KINDS, BanKind
from qgstream.service.bans import MAX_BANS, Ban, check_value
from qgstream.suggestions import did_you_mean

DEFAULT_SECONDS = 3600.0
MAX_SECONDS = 366 * 86_400.0
NEVER = "never"
_MAX_REASON_CHARACTERS = 200
_FIELDS = (*BAN_KINDS, "reason", "expires_in_seconds")


class BansHandler(AdminHandler):
    """All bans of this process."""

    def get(self) -> None:
        """Return the bans in effect, the oldest first."""
        bans = self.service.bans
        bans.purge(time.monotonic())
        self.answer({"bans": [ban.document() for ban in bans], "max_bans": MAX_BANS})

    async def post(self) -> None:
        """Ban a client at once. The response is sent when its last stream has been told. An existing ban gets the new
        reason and end."""
        body = self.json_object()
        self.check_fields(body, _FIELDS)
        kind, value = self._target(body)
        reason = "" if body.get("reason") is None else body["reason"]
        if reason != "":
            check_text("reason", reason, max_characters=_MAX_REASON_CHARACTERS)
        ban, is_new = self.service.bans.add(
            kind, value, reason=reason, by=self.principal.name, seconds=self._seconds(body),
            now=time.monotonic(), unix_now=time.time(),
        )  # fmt: skip
        # Before the streams are ended: the ban holds from now on, even if this request fails.
        self.audit("admin.banned", **_facts(ban))
        kicked = await self.service.end_banned()
        self.set_status(201 if is_new else 200)
        self.answer({**ban.document(), "kicked": kicked})

    def _target(self, body: dict[str, Any]) -> tuple[BanKind, str]:
        given = [kind for kind in BAN_KINDS if body.get(kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise InvalidField(given[1] if given else "address", f"got {got}, expected one of {', '.join(BAN_KINDS)}")
        kind = given[0]
        value = check_value(kind, body[kind])
        if kind == "key":
            self._check_key(value)
        return kind, value

    def _check_key(self, name: str) -> None:
        # A misspelt name would ban no client. The name is not repeated: it may be the key itself.
        known = self.service.auth.settings.publish_keys
        if name not in known:
            hint = did_you_mean(name, known)
            raise Conflict("key", f"got an unknown name, expected that of a key in auth.publish_keys{hint}")

    def _seconds(self, body: dict[str, Any]) -> float | None:
        if body.get("expires_in_seconds") == NEVER:
            return None
        return self.number_of(body, "expires_in_seconds", DEFAULT_SECONDS, low=1, high=MAX_SECONDS)


class BanHandler(AdminHandler):
    """One ban, by its id."""

    def get(self, id: str) -> None:
        """Return the ban."""
        self.answer(self._find(id).document())

    def delete(self, id: str) -> None:
        """Lift the ban at once."""
        ban = self._find(id)
        self.service.bans.remove(ban.id)
        self.audit("admin.unbanned", **_facts(ban))
        self.answer(ban.document())

    def _find(self, id: str) -> Ban:
        bans = self.service.bans
        bans.purge(time.monotonic())
        ban = bans.get(int(id))
        if ban is None:
            raise NotFound(f"got {id}, expected the id of a ban that has not ended")
        return ban


def _facts(ban: Ban) -> dict[str, object]:
    document = ban.document()
    return {"ban": ban.id, **{name: document[name] for name in ("kind", "value", "reason", "expires_at")}}
