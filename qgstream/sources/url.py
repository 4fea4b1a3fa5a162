"""A document on the web that is requested at intervals: each change is an event."""

from __future__ import annotations

import asyncio
import os
from random import Random

from pydantic import AnyHttpUrl
from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from qgstream.net.environment import explained, system_tls
from qgstream.sources.base import Events, Unpublishable
from qgstream.sources.lines import Parse, Seconds, event_of

MAX_DOCUMENT_BYTES = 1024 * 1024


async def url(
    *,
    url: AnyHttpUrl,
    topic: str = "url",
    event: str | None = None,
    parse: Parse = "text",
    interval_seconds: Seconds = 10,
    timeout_seconds: Seconds = 10,
    headers: dict[str, str] | None = None,
) -> Events:
    """Yield a document when it is first received and whenever it has changed. Requests use `If-None-Match` and
    `If-Modified-Since`.

    The interval is jittered by a tenth. A failed request is logged and counted, and repeated at the next interval.
    Redirects are not followed, because their targets were not configured.
    """
    # Not the client that a program may have configured for itself: that client has other limits.
    client = SimpleAsyncHTTPClient(
        force_instance=True, max_body_size=MAX_DOCUMENT_BYTES, max_buffer_size=2 * MAX_DOCUMENT_BYTES
    )
    random = Random()
    known: bytes | None = None
    conditions: dict[str, str] = {}
    try:
        while True:
            request = HTTPRequest(
                str(url), headers=(headers or {}) | conditions, connect_timeout=timeout_seconds,
                request_timeout=timeout_seconds, follow_redirects=False,
                ssl_options=system_tls(os.environ) if url.scheme == "https" else None,
            )  # fmt: skip
            # The error text does not repeat the URL, which may contain a password.
            try:
                response = await client.fetch(request, raise_error=False)
            except Exception as error:  # noqa: BLE001  # the server may fail in any way, and the source asks again
                yield Unpublishable(f"request failed: {explained(error, os.environ)}")
            else:
                if response.code == 200:
                    conditions = _conditions(response)
                    if response.body != known:
                        known = response.body
                        yield event_of(known.rstrip(b"\r\n"), topic, event, parse)
                elif response.code != 304 or known is None:
                    yield Unpublishable(f"got status {response.code}, expected 200 or 304")
            await asyncio.sleep(interval_seconds * random.uniform(0.9, 1.1))
    finally:
        client.close()


def _conditions(response: HTTPResponse) -> dict[str, str]:
    pairs = (("If-None-Match", "Etag"), ("If-Modified-Since", "Last-Modified"))
    return {ask: response.headers[told] for ask, told in pairs if told in response.headers}
