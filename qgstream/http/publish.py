"""`POST /events`: publish one event, or a batch, all or nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Generator, Iterator

from tornado.web import stream_request_body

from qgstream.errors import (
    BadRequest,
    Forbidden,
    NoPublishKeys,
    QgstreamError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from qgstream.events import draft
from qgstream.events.publication import Publication
from qgstream.http.base import BaseHandler
from qgstream.hub import Receipt
from qgstream.net.content_codings import Decoder, decoder_for
from qgstream.reasons import PublishResult
from qgstream.service.refusal_log import result_of
from qgstream.talkers import data_bytes

JSON = "application/json"
NDJSON = "application/x-ndjson"

# A refused body is read and discarded so that the client gets its response, but only up to this multiple of the limit.
_PATIENCE = 4
# A shorter body is parsed as soon as it has arrived.
_LOOKS_AT_ONCE = 4
# The number of comparisons of a topic with a token's pattern between two looks at the clock: about half a millisecond.
_CHECKS_PER_LOOK = 2000


@stream_request_body
class PublishHandler(BaseHandler):
    """Reads the body itself, so that credentials and size are checked before the body is held in memory."""

    is_counted = False  # by its result
    refusal: QgstreamError | None = None
    received_bytes = 0
    under_way = False  # counted in `service.publishing`
    held_bytes = 0  # counted in `service.bodies`
    is_posting = False

    def prepare(self) -> None:
        """Check the request before its body is read: nothing of a refused body is held in memory."""
        self.under_way = True
        self.service.publishing += 1
        self.limit = self.service.limits.max_body_bytes
        self.body = bytearray()
        self.read_body_up_to(self.limit * _PATIENCE)
        self.decoder: Decoder | None = None
        declared = self._declared_bytes()
        try:
            self._check_publisher()
            self._check_maintenance()
            self.media_type = self._check_media_type()
            self.decoder = decoder_for(self.request.headers.get("Content-Encoding", ""))
            if declared > self.limit:
                raise TooLarge("body", declared, self.limit)
            self.service.bodies.check(declared, self.service.limits.max_inflight_body_bytes)
        except QgstreamError as error:
            # A client that waits for `100 Continue` has not sent the body, and the server does not read for ever.
            if "Expect" in self.request.headers or declared > self.limit * _PATIENCE:
                self.close_after_answer = True
                raise
            self.refusal = error.with_traceback(None)

    def _declared_bytes(self) -> int:
        # int() raises ValueError for thousands of digits.
        declared = self.request.headers.get("Content-Length", "0")[:19]
        return int(declared) if declared.isdecimal() else 0

    def _check_media_type(self) -> str:
        media_type = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type not in (JSON, NDJSON):
            raise UnsupportedMediaType(f"Content-Type: got {media_type[:100]!r}, expected {JSON} or {NDJSON}")
        return media_type

    def _check_publisher(self) -> None:
        self.service.check_ban(self.remote_ip)
        if not self.service.auth.takes_publishers:
            # Before the credentials: whatever the client sent, the configuration is what has to change.
            raise NoPublishKeys(
                "got no publish keys in the configuration, expected at least one in auth.publish_keys "
                '(QGSTREAM_AUTH__PUBLISH_KEYS=\'{"name": "key"}\'), or tokens in auth.jwt: without them nobody may '
                "publish over HTTP"
            )
        principal = self.authenticate()
        self.service.check_ban(self.remote_ip, principal)
        if principal.kind == "anonymous":
            raise Unauthorized("got no credentials, expected a publish key or a token in Authorization: Bearer")
        if not principal.publish:
            raise Forbidden("these credentials do not allow publishing")

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Store a part of the body. A part that must be decoded returns an awaitable: nothing more is read until it is
        done."""
        self.received_bytes += len(chunk)
        if self.refusal is not None or self.received_bytes > self.limit:
            self._let_go()
        elif self.decoder is not None:
            return self._decode(self.decoder.decode(chunk))
        else:
            try:
                self._hold(chunk)
            except Unavailable as error:
                self._refuse(error)
        return None

    def _hold(self, data: bytes) -> None:
        max_bytes = self.service.limits.max_inflight_body_bytes
        self.held_bytes = self.service.bodies.hold(len(data), max_bytes, own_bytes=self.held_bytes)
        self.body += data

    def _let_go(self) -> None:
        self.service.bodies.release(self.held_bytes)
        self.held_bytes, self.body = 0, bytearray()

    async def _decode(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                self._keep_decoded(piece)
                await asyncio.sleep(0)  # 64 KiB may be 64 MiB when they are decoded
        except QgstreamError as error:
            self._refuse(error)

    def _keep_decoded(self, piece: bytes) -> None:
        decoded = len(self.body) + len(piece)
        if decoded > self.limit:
            raise TooLarge("decoded body", decoded, self.limit)
        self._hold(piece)

    def _refuse(self, error: QgstreamError) -> None:
        self.refusal = error.with_traceback(None)  # its traceback would keep the received data
        self._let_go()

    def _end_decoding(self) -> None:
        if self.decoder is not None and self.received_bytes and self.refusal is None:
            try:
                self._keep_decoded(self.decoder.finish())
            except QgstreamError as error:
                self._refuse(error)

    async def post(self) -> None:
        """Publish. The response is sent when the events are in the log."""
        self.is_posting = True
        try:
            await self._post()
        finally:
            self.is_posting = False
            self._let_go()

    async def _post(self) -> None:
        if self.refusal is None and self.received_bytes > self.limit:
            raise TooLarge("body", self.received_bytes, self.limit)
        self._end_decoding()
        if self.refusal is not None:
            try:
                raise self.refusal
            finally:
                self.refusal = None  # otherwise it would hold this frame and so the handler in a cycle
        publications = await self._parse()
        await self.service.hub.slices.result(self._check_grants(publications), looks_at_once=_LOOKS_AT_ONCE)
        self.service.check_ban(self.remote_ip, self.principal)  # the client may have been banned meanwhile
        self.service.charge(self.principal, len(publications), self.remote_ip)
        receipt = await self._publish(publications)
        self._accepted(publications, receipt)
        if self.media_type == JSON:
            self.answer({"id": receipt.id, "subscribers": receipt.subscribers})
        else:
            self.answer({"ids": receipt.ids, "subscribers": receipt.subscribers})

    async def _parse(self) -> list[Publication]:
        body, self.body = bytes(self.body), bytearray()
        max_event_bytes, namespace = self.service.limits.max_event_bytes, self.principal.namespace
        if not body.removeprefix(draft.BYTE_ORDER_MARK).strip():
            raise BadRequest("got an empty body, expected a JSON object", code="empty_body")
        if self.media_type == JSON:
            return [draft.parse_json(body, max_event_bytes, namespace=namespace)]
        job = draft.parse_ndjson(body, max_event_bytes, namespace=namespace)
        return await self.service.hub.slices.result(job, looks_at_once=_LOOKS_AT_ONCE)

    async def _publish(self, publications: list[Publication]) -> Receipt:
        if not self.service.takes_events:
            raise Unavailable(
                "the server is draining; retry to reach another one", retry_after_seconds=1, code="draining"
            )
        self._check_maintenance()
        return await self.service.hub.publish_all(publications)

    def _check_maintenance(self) -> None:
        self.service.maintenance.check_publish(self.service.retry_after_seconds())

    # Each publish is counted once, by its result.

    def _accepted(self, publications: list[Publication], receipt: Receipt) -> None:
        fresh = len(publications) - receipt.repeated
        self._count("accepted" if fresh else "repeated")
        size = data_bytes(publication.data for publication in publications)
        self.service.hub.talkers.published(self.asker, fresh, size, time.monotonic())

    def _count(self, result: PublishResult) -> None:
        self.is_counted = True
        self.service.hub.metrics.publish_ended(result)

    def see_failure(self, error: BaseException | None) -> None:
        """See `BaseHandler`. None: the client disconnected before its request was complete."""
        if self.is_counted:
            return
        result = "incomplete" if error is None else result_of(error)
        self._count(result)
        asker = self.asker
        self.service.hub.talkers.refused_publish(asker, result, time.monotonic())
        self.service.refusals.see("publish.refused", asker, result, error)

    def _broken_off(self) -> QgstreamError | None:
        # The connection refuses a body that is far too large, or a malformed request.
        is_too_large = getattr(self.request.connection, "refusal_status", 0) == TooLarge.status
        if is_too_large or self.received_bytes > self.limit:
            return TooLarge("body", self.received_bytes, self.limit)
        return None

    def on_finish(self) -> None:
        """The response is sent."""
        super().on_finish()
        self._over()

    def on_connection_close(self) -> None:
        """The client has disconnected."""
        super().on_connection_close()
        self._over()

    def _over(self) -> None:
        if self.under_way:
            self.under_way = False
            self.service.publishing -= 1
        if not self.is_posting:  # otherwise the body is held and counted until the publish is done
            if not self.is_counted:
                self.see_failure(self.refusal or self._broken_off())
            self._let_go()

    def _check_grants(self, publications: list[Publication]) -> Generator[None, None, None]:
        if "*" in self.principal.publish:
            return
        checks = 0
        for publication in publications:
            self.principal.require_publish(publication.topics)
            checks += len(publication.topics) * len(self.principal.publish)
            if checks >= _CHECKS_PER_LOOK:
                checks = 0
                yield
