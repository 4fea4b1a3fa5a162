"""The issuer's key set at `auth.jwt.jwks_url`: fetched, kept fresh, and kept through outages.

Sources: RFC 7517, 5 (the set); OpenID Connect Core 1.0, 10.1.1 (rotation: fetch again on an unknown `kid`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import Callable

from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from qgstream.errors import ConfigError
from qgstream.logs import log
from qgstream.net.environment import explained, system_tls

REFRESH_SECONDS = 300.0
# Between two fetches, whoever asks and however it went: anybody can send a token with a key id of his own making.
PAUSE_SECONDS = 10.0
# Of a whole fetch: a start waits for the first one.
TIMEOUT_SECONDS = 5.0
# A key is below 1 KiB, a certificate chain beside it a few.
MAX_SET_BYTES = 256 * 1024


class KeySet:
    """Keeps the key set of one URL. `take` gets each set that came; it raises `ConfigError` for one of no use.

    On failure what was taken stays in use. The log has one line when that begins, and one when it ends.
    """

    def __init__(
        self,
        url: str,
        take: Callable[[object], int],
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.url = url
        self.document: object = None  # the last set that was taken
        # Whether there are keys to go on with: a set that was taken, or what is in use instead of the first one.
        self.has_keys = False
        self._as_of = -math.inf  # when the fetch of the document began, in Unix seconds
        self._take = take
        self._refresh_seconds, self._pause_seconds = refresh_seconds, pause_seconds
        self._timeout_seconds = timeout_seconds
        self._wanted, self._tried = asyncio.Event(), asyncio.Event()
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def stop(self) -> None:
        """Fetch no more."""
        if self._task is not None:
            self._task.cancel()

    async def tried(self) -> None:
        """Return when the first fetch is over, well or not."""
        await self._tried.wait()

    @property
    def last_success_at(self) -> float:
        """When the last fetch that brought a good set began, in Unix seconds; 0 before the first."""
        return max(0.0, self._as_of)

    def refresh(self, issued_at: float | None = None) -> bool:
        """Fetch soon: a token named a key that is not in the set.

        Returns whether a token that was issued then (unix seconds) may be signed with a key of the next set: only if it
        is newer than this one. A token with a key that does not exist is so told apart, though only one fetch later.
        """
        self._wanted.set()
        return issued_at is not None and issued_at > self._as_of

    async def _keep(self) -> None:
        # Not the client that a program may have configured for itself: its bounds would not be these.
        client = SimpleAsyncHTTPClient(
            force_instance=True, max_body_size=MAX_SET_BYTES, max_buffer_size=2 * MAX_SET_BYTES
        )
        try:
            while True:
                self._wanted.clear()
                await self._fetch(client)
                self._tried.set()
                await asyncio.sleep(self._pause_seconds)
                if not self._failing:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wanted.wait(), self._refresh_seconds - self._pause_seconds)
        finally:
            client.close()

    async def _fetch(self, client: SimpleAsyncHTTPClient) -> None:
        as_of = time.time()
        try:
            document = await self._get(client)
            keys = self._take(document)
        except Exception as error:  # noqa: BLE001 - whatever an issuer sends, the set in use outlives it
            if not self._failing:
                reason = explained(error, os.environ)[:300]
                log.warning("jwks.failed", extra={"reason": reason, "has_keys": self.has_keys, "url": self.url})
            self._failing = True
            return
        if self._failing or document != self.document:
            log.info("jwks.loaded", extra={"keys": keys, "url": self.url})
        self._failing, self.document, self.has_keys, self._as_of = False, document, True, as_of

    async def _get(self, client: SimpleAsyncHTTPClient) -> object:
        request = HTTPRequest(
            self.url,
            headers={"Accept": "application/jwk-set+json, application/json"},
            connect_timeout=self._timeout_seconds,
            request_timeout=self._timeout_seconds,
            # Where a redirect leads was not configured, and need not be https.
            follow_redirects=False,
            decompress_response=False,
            ssl_options=system_tls(os.environ) if self.url.startswith("https:") else None,
        )
        fetching = client.fetch(request, raise_error=False)
        # `stop` may cancel this, and the client would log an error when it hears of its timeout later.
        fetching.add_done_callback(lambda fetched: fetched.cancelled() or fetched.exception())
        response = await asyncio.shield(fetching)
        if response.code != 200:
            raise ConfigError([f"auth.jwt.jwks_url: got status {response.code}, expected 200"])
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError):
            raise ConfigError(["auth.jwt.jwks_url: got something that is not JSON, expected a JWK set"]) from None
