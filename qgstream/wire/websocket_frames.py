"""WebSocket frames: frames that the server sends, and frames that a client sends. Pure: bytes in, bytes out.

Source: RFC 6455. The library `websockets` encodes and decodes each frame. A stream does not use the library's protocol
objects: such an object costs a kilobyte per client, and clients send almost nothing. No state between two frames is
needed, because the server refuses the first frame of a client's message.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode

from qgstream.reasons import CloseReason

# The server refuses every message of a client. A frame over this size is refused before it has arrived, which bounds
# the memory.
MAX_PAYLOAD_BYTES = 4096
# 5.5: a control frame has at most 125 bytes; two of them are the code.
_MAX_REASON_BYTES = 123

# The WebSocket close code of each reason (7.4.1 and IANA's registry). Clients reconnect after all of these codes, at
# once or later. Some clients do not reconnect after 1000; all clients reconnect after 1001 and 1013.
CLOSE_CODES: Final[dict[CloseReason, int]] = {
    "client": CloseCode.NORMAL_CLOSURE,
    "slow_consumer": CloseCode.TRY_AGAIN_LATER,
    "write_error": CloseCode.INTERNAL_ERROR,
    "timeout": CloseCode.INTERNAL_ERROR,
    "max_age": CloseCode.GOING_AWAY,
    "token_expired": CloseCode.POLICY_VIOLATION,
    "access_changed": CloseCode.POLICY_VIOLATION,
    "kicked": CloseCode.POLICY_VIOLATION,
    "drain": CloseCode.GOING_AWAY,
    "server_error": CloseCode.INTERNAL_ERROR,
}


def text(payload: bytes) -> bytes:
    """Encode one message. Every client gets the same bytes: 5.1, "a server MUST NOT mask any frames"."""
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def pong(payload: bytes) -> bytes:
    """Encode the reply to a ping."""
    return Frame(Opcode.PONG, payload).serialize(mask=False)


def close(code: int, reason: str = "") -> bytes:
    """Encode a close frame, the last frame of a connection."""
    if code == CloseCode.NO_STATUS_RCVD:  # 7.4.1: "MUST NOT be set as a status code in a Close control frame"
        return Frame(Opcode.CLOSE, b"").serialize(mask=False)
    reason = reason.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)


@dataclass(frozen=True, slots=True)
class Received:
    """The meaning of the bytes that a client sent.

    `rest` is the start of an unfinished frame, for the next call. `ping` is the payload of the newest ping; a reply to
    the newest ping is enough (5.5.3). `closed` is the code of the client's close frame. `refused` is the close code
    with which the server refuses a frame, and `why` is its reason; all bytes after that frame are ignored.
    """

    rest: bytes = b""
    ping: bytes | None = None
    closed: int | None = None
    refused: int | None = None
    why: str = ""


def parse(received: bytes) -> Received:
    """Decode the bytes that a client sent. `received` starts at the start of a frame."""
    ping, start = None, 0
    try:
        while start < len(received):
            frame, end = _read(received, start)
            if frame is None:
                break
            start = end
            if frame.opcode is Opcode.CLOSE:
                return Received(ping=ping, closed=Close.parse(frame.data).code)
            if frame.opcode is Opcode.PING:
                ping = bytes(frame.data)
            elif frame.opcode is not Opcode.PONG:  # 5.5.3: "a response to an unsolicited Pong frame is not expected"
                why = "this stream accepts no messages: choose topics in the URL"
                return Received(ping=ping, refused=CloseCode.UNSUPPORTED_DATA, why=why)
    except PayloadTooBig as error:
        return Received(refused=CloseCode.MESSAGE_TOO_BIG, why=str(error))
    except UnicodeDecodeError:
        return Received(refused=CloseCode.INVALID_DATA, why="got a close frame whose reason is not UTF-8")
    except ProtocolError as error:
        return Received(refused=CloseCode.PROTOCOL_ERROR, why=str(error))
    return Received(rest=received[start:], ping=ping)


def _read(received: bytes, start: int) -> tuple[Frame | None, int]:
    """Return the frame that starts at `start` and the end of the frame; return None if the frame is incomplete."""
    at = start

    def read_exact(count: int) -> Generator[None, None, bytes]:
        nonlocal at
        if len(received) < at + count:
            yield
        at += count
        return received[at - count : at]

    try:
        # 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        next(Frame.parse(read_exact, mask=True, max_size=MAX_PAYLOAD_BYTES))
    except StopIteration as done:
        return done.value, at
    return None, start
