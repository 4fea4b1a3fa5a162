"""nats-py's client, changed to continue after a message that the library cannot parse.

A NATS server accepts any bytes in a subject except spaces, tabs and line ends, and hardly checks headers. nats-py
silently stops reading at a subject that is not UTF-8, and closes the connection at a subject with a vertical tab or a
form feed. Such a message may stay in a stream for ever. So this module replaces these methods of the library, none of
them public; tests/brokers/test_poison.py has each case.
"""

from __future__ import annotations

from nats.aio.client import Client as _Client
from nats.aio.msg import Msg
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, MAX_CONTROL_LINE_SIZE, Parser

from qgstream.brokers.nats.messages import UNREADABLE

# Regular expressions treat these two characters as white space, but the server does not. They become a byte that never
# occurs in UTF-8.
_NO_SPACES = bytes.maketrans(b"\x0b\x0c", b"\xff\xff")


class Client(_Client):
    """Also delivers messages that cannot be parsed: `to_publication` then describes the problem."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A lone surrogate replaces each byte that is not UTF-8, and no topic may contain one.
        text = subject.decode(errors="surrogateescape")
        reply_to = reply.decode(errors="surrogateescape")
        return self.msg_class(subject=text, reply=reply_to, data=data, headers=headers, _client=self, _sid=sid)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception as error:  # noqa: BLE001  # whatever it is, the reader goes on with the next message
            return {UNREADABLE: f"{type(error).__name__}: {error}"}


class _Parser(Parser):
    async def parse(self, data: bytes = b"") -> None:
        await self._parse(data)
        while self.state == AWAITING_CONTROL_LINE and (end := self.buf.find(b"\r\n", 0, MAX_CONTROL_LINE_SIZE * 2)) > 0:
            # The library could not parse this line.
            line = self.buf[:end]
            mended = line.translate(_NO_SPACES)
            if mended == line:
                raise ProtocolError
            self.buf[:end] = mended
            await self._parse(b"")

    async def _parse(self, data: bytes) -> None:
        try:
            await super().parse(data)
        except ProtocolError:
            if self.state != AWAITING_CONTROL_LINE or not self.buf:
                raise
