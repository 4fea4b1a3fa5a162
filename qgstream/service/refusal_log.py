"""The sampled log of refusals: an attack must be visible in the log, and must not flood the log.

The first refusal for an address and a reason is logged at once. The other refusals of the next minute are counted, and
logged as one line at the end of the minute. All code that refuses a request reports it here.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Literal

from tornado.web import HTTPError

from qgstream.errors import QgstreamError
from qgstream.logs import SELDOM_SECONDS, log, quote
from qgstream.net.addresses import client_key
from qgstream.reasons import PublishResult
from qgstream.talkers import Asker

# The kinds of refused requests: a publish, a stream, a request below /admin, any other request.
Event = Literal["publish.refused", "events.rejected", "admin.refused", "request.refused"]

_MAX_ERROR_CHARACTERS = 200

_BY_CODE: dict[str, PublishResult] = {
    "draining": "draining",
    "maintenance": "draining",
    "inflight_bodies": "overloaded",
}
_BY_STATUS: dict[int, PublishResult] = {
    401: "unauthorized", 403: "forbidden", 413: "too_large", 429: "rate_limited", 503: "unavailable",
}  # fmt: skip


def result_of(error: BaseException) -> PublishResult:
    """Return the word for a refusal with this error, out of a closed set; `failed` for a fault of the server."""
    status = error.status_code if isinstance(error, HTTPError) else getattr(error, "status", 500)
    code = error.code if isinstance(error, QgstreamError) else ""
    found = _BY_CODE.get(code) or _BY_STATUS.get(status)
    return found or ("bad_request" if status < 500 else "failed")


class _Refused:
    """The refusals of one kind for one address since the line about the first of them."""

    __slots__ = ("address", "since", "more")

    def __init__(self, address: str, since: float) -> None:
        self.address = address
        self.since = since
        self.more = 0


class RefusalLog:
    """Writes the lines. Call `flush` every few seconds: it writes the lines that are due."""

    # The kinds of refusals counted separately in one minute; about 0.4 KiB each. Further kinds share one line.
    MAX_TOLD_APART = 500

    def __init__(self, *, seconds: float = SELDOM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        # In the order of `since`. Keyed by event, client (as limits count clients: the /64 of an IPv6 address) and
        # reason.
        self._refused: OrderedDict[tuple[Event, str, str], _Refused] = OrderedDict()
        self._beyond: Counter[tuple[Event, str]] = Counter()
        self._beyond_since = 0.0

    def __len__(self) -> int:
        return len(self._refused) + len(self._beyond)

    def see(self, event: Event, asker: Asker, reason: str, error: BaseException | None = None) -> None:
        """Record a refused request. `reason` is a word out of a closed set."""
        now, key = self._clock(), (event, client_key(asker.address), reason)
        refused = self._refused.get(key)
        if refused is not None and now - refused.since < self._seconds:
            refused.more += 1
            return
        if refused is not None or len(self._refused) >= self.MAX_TOLD_APART:
            self.flush()
        if len(self._refused) >= self.MAX_TOLD_APART:
            if not self._beyond:
                self._beyond_since = now
            self._beyond[event, reason] += 1
            return
        self._refused[key] = _Refused(asker.address, now)
        log.info(
            event,
            extra={
                "reason": reason, "remote_ip": asker.address, **asker.fields, "user_agent": asker.agent,
                **({} if error is None else _told(error)),
            },
        )  # fmt: skip

    def flush(self, *, everything: bool = False) -> None:
        """Write a line for each kind of refusal whose minute is over, if there were refusals after the first one. With
        `everything`, also write the kinds whose minute is not over."""
        now = self._clock()
        while self._refused:
            (event, client, reason), refused = next(iter(self._refused.items()))
            if not everything and now - refused.since < self._seconds:
                break
            self._refused.popitem(last=False)
            if refused.more:
                log.info(
                    event,
                    extra={
                        "reason": reason, "remote_ip": refused.address,
                        **({"network": client} if client != refused.address else {}),
                        "more": refused.more, "more_in_seconds": round(now - refused.since, 3),
                    },
                )  # fmt: skip
        if self._beyond and (everything or now - self._beyond_since >= self._seconds):
            beyond: dict[str, dict[str, int]] = {}
            for (event, reason), count in self._beyond.items():
                beyond.setdefault(event, {})[reason] = count
            seconds = round(now - self._beyond_since, 3)
            log.info(
                "refusals.others",
                extra={"more": self._beyond.total(), "more_in_seconds": seconds, "refused": beyond},
            )
            self._beyond.clear()


def _told(error: BaseException) -> dict[str, object]:
    if not isinstance(error, QgstreamError):
        return {}
    return {"status": error.status, "code": error.code, "error": quote(str(error), _MAX_ERROR_CHARACTERS)}
