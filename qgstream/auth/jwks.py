"""The issuer's key set at `auth.jwt.jwks_url`: fetching, refreshing, and keeping the keys during outages.

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
# The pause between two fetches, after success and failure alike: any client can send a token with an invented key id.
PAUSE_SECONDS = 10.0
# The timeout of a whole fetch. At start, the server waits for the first fetch.
TIMEOUT_SECONDS = 5.0
# A key is below 1 KiB; a certificate chain with the key has a few KiB.
MAX_SET_BYTES = 256 * 1024


class KeySet:
    """Keeps the key set of one URL. `take` receives each fetched set, and raises `ConfigError` for an unusable set.

    After a failed fetch, the last good set stays in use. The log has one line when failures begin, and one line when
    they end.
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
        self.document: object = None  # the last set that `take` accepted
        # Whether there are usable keys: an accepted set, or the keys that are in use until the first set arrives.
        self.has_keys = False
        self._as_of = -math.inf  # when the fetch of the document began, in Unix seconds
        self._take = take
        self._refresh_seconds, self._pause_seconds = refresh_seconds, pause_seconds
        self._timeout_seconds = timeout_seconds
        self._wanted, self._tried = asyncio.Event(), asyncio.Event()
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start fetching on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def stop(self) -> None:
        """Stop fetching."""
        if self._task is not None:
            self._task.cancel()

    async def tried(self) -> None:
        """Wait until the first fetch has ended, with or without success."""
        await self._tried.wait()

    @property
    def last_success_at(self) -> float:
        """When the last successful fetch began, in Unix seconds; 0 before the first."""
        return max(0.0, self._as_of)

    def refresh(self, issued_at: float | None = None) -> bool:
        """Fetch soon, because a token named a key that is not in the set.

        Returns whether the next set may contain the key of a token issued at this time (unix seconds): only if the
        token is newer than the current set. So one fetch later, a token with a key that does not exist is refused.
        """
        self._wanted.set()
        return issued_at is not None and issued_at > self._as_of

    async def _keep(self) -> None:
        # A separate client, because a program may have configured the shared client with other limits.
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
            # Not followed: the operator did not configure the target of a redirect, and the target may not use https.
            follow_redirects=False,
            decompress_response=False,
            ssl_options=system_tls(os.environ) if self.url.startswith("https:") else None,
        )
        fetching = client.fetch(request, raise_error=False)
        # `stop` may cancel this task; without the callback, the client would later log its timeout as an error.
        fetching.add_done_callback(lambda fetched: fetched.cancelled() or fetched.exception())
        response = await asyncio.shield(fetching)
        if response.code != 200:
            raise ConfigError([f"auth.jwt.jwks_url: got status {response.code}, expected 200"])
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError):
            raise ConfigError(["auth.jwt.jwks_url: got a body that is not JSON, expected a JWK set"]) from None
