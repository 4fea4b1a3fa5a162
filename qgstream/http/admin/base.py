"""The base of the handlers below `/admin`: it checks the admin key and parses requests strictly."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from qgstream.auth.authenticator import Credentials
from qgstream.errors import BadRequest, InvalidField, NoAdminKeys, UnsupportedMediaType
from qgstream.events.draft import BYTE_ORDER_MARK
from qgstream.http.base import BaseHandler
from qgstream.logs import log
from qgstream.net.content_codings import decode_body
from qgstream.net.sockets import MAX_BODY_BYTES
from qgstream.suggestions import did_you_mean

_JSON_TYPES = ("application/json", "application/merge-patch+json")
_WHOLE = re.compile(r"[0-9]{1,16}")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


class AdminHandler(BaseHandler):
    """Responds only to clients with an admin key. `parameters` are the names that the query may contain."""

    parameters: Collection[str] = ()

    def prepare(self) -> None:
        """Check the key: without a key, the server changes and tells nothing. A preflight needs no key."""
        if self.request.method == "OPTIONS":
            return
        auth = self.service.auth
        if not auth.settings.admin_keys:
            raise NoAdminKeys(
                "got no admin keys in the configuration, expected at least one in auth.admin_keys "
                '(QGSTREAM_AUTH__ADMIN_KEYS=\'{"name": "key"}\'): without them nobody may use /admin'
            )
        # From the header alone: URLs are stored in histories and in the logs of proxies, and browsers send cookies on
        # their own.
        credentials = Credentials(authorization=self.request.headers.get("Authorization"))
        self.principal = self.service.authenticate(credentials, self.remote_ip, place="admin")
        self.principal.require_admin()
        self._check_parameters()

    def see_failure(self, error: BaseException) -> None:
        """See `BaseHandler`. Log a wrong key, because keys are guessed here. Other errors only get their response."""
        if getattr(error, "status", None) in (401, 403):
            self.see_refusal("admin.refused", error)

    def audit(self, event: str, **fields: object) -> None:
        """Log one line for an operator's change: the operator, the address, and the change."""
        log.info(event, extra={"admin_key": self.principal.name, "remote_ip": self.remote_ip, **fields})

    # Parsing the request. Unknown parameters are refused: a misspelt filter would match every stream.

    def _check_parameters(self) -> None:
        for name, values in self.request.query_arguments.items():
            if name not in self.parameters:
                expected = ", ".join(self.parameters) or "no parameters"
                raise InvalidField(name[:100] or "query", f"unknown parameter, expected {expected}")
            if len(values) > 1:
                raise InvalidField(name, f"got the parameter {len(values)} times, expected it once")

    def text(self, name: str) -> str | None:
        """Return a parameter as it was sent, or None without it."""
        value: str | None = self.get_query_argument(name, None, strip=False)
        return value

    def whole(self, name: str, default: int, *, low: int = 0, high: int = 10**15) -> int:
        """Return a parameter that is a whole number from `low` to `high`."""
        text = self.text(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise InvalidField(name, f"got {text[:100]!r}, expected a whole number from {low} to {high}")
        return int(text)

    def number(self, name: str, default: float, *, high: float) -> float:
        """Return a parameter that is a number from 0 to `high`."""
        text = self.text(name)
        if text is None:
            return default
        if not _NUMBER.fullmatch(text) or not float(text) <= high:
            raise InvalidField(name, f"got {text[:100]!r}, expected a number from 0 to {high:g}")
        return float(text)

    def flag(self, name: str) -> bool:
        """Return a parameter that is `true` or `false`."""
        text = self.text(name)
        if text not in (None, "true", "false"):
            raise InvalidField(name, f"got {text[:100]!r}, expected true or false")
        return text == "true"

    def check_fields(self, body: dict[str, Any], expected: Collection[str]) -> None:
        """Raise `InvalidField` for a field of the body that is not in `expected`."""
        for name in body:
            if name not in expected:
                hint = did_you_mean(name, expected) or f", expected {' or '.join(expected)}"
                raise InvalidField(name[:100], f"unknown field{hint}")

    def number_of(self, body: dict[str, Any], name: str, default: float, *, low: float, high: float) -> float:
        """Return a field of the body that is a number from `low` to `high`; null means the default."""
        value = body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidField(name, f"got {type(value).__name__}, expected a number")
        if not low <= value <= high:
            raise InvalidField(name, f"got {repr(value)[:100]}, expected {low:g} to {high:g}")
        return value

    def flag_of(self, body: dict[str, Any], name: str, *, default: bool) -> bool:
        """Return a field of the body that is true or false."""
        value = body.get(name, default)
        if not isinstance(value, bool):
            raise InvalidField(name, f"got {type(value).__name__}, expected true or false")
        return value

    def json_object(self, *, required: bool = True) -> dict[str, Any]:
        """Return the body, a JSON object. Unless it is `required`, a missing body counts as an empty object."""
        if not self.request.body and not required:
            return {}
        media_type = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type not in _JSON_TYPES:
            raise UnsupportedMediaType(f"Content-Type: got {media_type[:100]!r}, expected {_JSON_TYPES[0]}")
        coding = self.request.headers.get("Content-Encoding", "")
        body = decode_body(self.request.body, coding, MAX_BODY_BYTES).removeprefix(BYTE_ORDER_MARK)
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"body: not JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise BadRequest("body: nested too deeply", code="invalid_json") from None
        if not isinstance(document, dict):
            raise BadRequest(f"body: got {type(document).__name__}, expected an object", code="invalid_json")
        return document
