"""WebSocket frames: those that are sent, and what a client says in its own. Pure: bytes in, bytes out.

Source: RFC 6455. The library `websockets` writes each frame and reads each frame, so its rules are the library's. A
stream has none of its protocol objects: it would hold a kilobyte for clients that have next to nothing to say, and
between two frames there is nothing to remember, because the first frame of a message is refused already.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode

from qgstream.reasons import CloseReason

# A message is refused whatever its size; over this it is refused before it has come, so that no more is ever held.
MAX_PAYLOAD_BYTES = 4096
# 5.5: a control frame has 125 bytes at most, two of which are the code.
_MAX_REASON_BYTES = 123

# What each reason is in WebSocket's own terms (7.4.1 and IANA's registry). No client takes 1001 or 1013 for a wish to
# be left alone, as some do 1000: all of these ends are followed by a reconnection, if not at once.
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
    """One message. The same bytes go to every client: 5.1, "a server MUST NOT mask any frames"."""
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def pong(payload: bytes) -> bytes:
    """The answer to a ping."""
    return Frame(Opcode.PONG, payload).serialize(mask=False)


def close(code: int, reason: str = "") -> bytes:
    """The last frame."""
    if code == CloseCode.NO_STATUS_RCVD:  # 7.4.1: "MUST NOT be set as a status code in a Close control frame"
        return Frame(Opcode.CLOSE, b"").serialize(mask=False)
    reason = reason.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client's bytes came to.

    `rest` is the beginning of a frame, for the next time. `ping` is to be answered: the newest alone, which 5.5.3
    allows. `closed` is the code of the client's own goodbye. `refused` is the code with which what it said is refused,
    and `why` the words; nothing behind that counts.
    """

    rest: bytes = b""
    ping: bytes | None = None
    closed: int | None = None
    refused: int | None = None
    why: str = ""


def hear(received: bytes) -> Heard:
    """Understand what a client sent, from the beginning of a frame on."""
    ping, start = None, 0
    try:
        while start < len(received):
            frame, end = _read(received, start)
            if frame is None:
                break
            start = end
            if frame.opcode is Opcode.CLOSE:
                return Heard(ping=ping, closed=Close.parse(frame.data).code)
            if frame.opcode is Opcode.PING:
                ping = bytes(frame.data)
            elif frame.opcode is not Opcode.PONG:  # 5.5.3: "a response to an unsolicited Pong frame is not expected"
                why = "this stream takes no messages: what is wanted of it is in its URL"
                return Heard(ping=ping, refused=CloseCode.UNSUPPORTED_DATA, why=why)
    except PayloadTooBig as error:
        return Heard(refused=CloseCode.MESSAGE_TOO_BIG, why=str(error))
    except UnicodeDecodeError:
        return Heard(refused=CloseCode.INVALID_DATA, why="the reason of a close frame is not UTF-8")
    except ProtocolError as error:
        return Heard(refused=CloseCode.PROTOCOL_ERROR, why=str(error))
    return Heard(rest=received[start:], ping=ping)


def _read(received: bytes, start: int) -> tuple[Frame | None, int]:
    """The frame that begins at `start` and where it ends, or None while it is not all there."""
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
