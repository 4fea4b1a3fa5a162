"""WebSocket frames, byte by byte: those that are sent, and whatever a client may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode

from qgstream.reasons import CLOSE_REASONS
from qgstream.wire import websocket_frames as frames
from qgstream.wire.websocket_frames import Received, parse

MASK = b"\x01\x02\x03\x04"


def said(opcode: int, payload: bytes = b"", *, head: int = 0x80) -> bytes:
    """A client's frame, written out by hand: masked, and `head` is the final bit and the reserved ones."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes([byte ^ MASK[index % 4] for index, byte in enumerate(payload)])
    return bytes([head | opcode]) + length + MASK + masked


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_message_is_one_text_frame_without_a_mask(size: int, head: bytes) -> None:
    assert frames.text(b"x" * size) == head + b"x" * size


def test_a_close_says_its_code_and_a_reason_that_fits() -> None:
    assert frames.close(1001, "drain") == b"\x88\x07\x03\xe9drain"
    assert frames.close(CloseCode.NO_STATUS_RCVD) == b"\x88\x00"
    long = frames.close(1002, "é" * 100)
    assert (long[:2], len(long)) == (b"\x88\x7c", 126)  # not half a character
    assert long[4:].decode() == "é" * 61


@pytest.mark.parametrize("reason", CLOSE_REASONS)
def test_each_reason_has_a_code_and_none_but_the_clients_own_means_that_all_is_done(reason: str) -> None:
    assert (frames.CLOSE_CODES[reason] == 1000) == (reason == "client")  # type: ignore[index]


PING, CLOSE = said(9, b"are you there"), said(8, b"\x03\xe8bye")


@pytest.mark.parametrize(
    ("received", "heard"),
    [
        (b"", Received()),
        (PING, Received(ping=b"are you there")),
        (said(9), Received(ping=b"")),
        (said(9, b"one") + said(10, b"x") + said(9, b"two"), Received(ping=b"two")),
        (said(10), Received()),
        (CLOSE, Received(closed=1000)),
        (said(8), Received(closed=1005)),
        (said(8, b"\x0b\xb8"), Received(closed=3000)),
        (PING + CLOSE + b"whatever", Received(ping=b"are you there", closed=1000)),
        (PING[:1], Received(rest=PING[:1])),
        (PING[:-1], Received(rest=PING[:-1])),
        (PING + CLOSE[:5], Received(rest=CLOSE[:5], ping=b"are you there")),
    ],
)
def test_what_a_client_may_say(received: bytes, heard: Received) -> None:
    assert parse(received) == heard


@pytest.mark.parametrize(
    ("received", "code", "why"),
    [
        (said(1, b"hello"), 1003, "accepts no messages"),
        (said(1, b"\xff\xfe"), 1003, "accepts no messages"),  # not UTF-8, and not looked at
        (said(2, b"\x00"), 1003, "accepts no messages"),
        (said(1, b"a beginning", head=0), 1003, "accepts no messages"),
        (said(0, b"the middle of nothing", head=0), 1003, "accepts no messages"),
        (said(1, b"x" * frames.MAX_PAYLOAD_BYTES), 1003, "accepts no messages"),
        (said(1, b"x" * (frames.MAX_PAYLOAD_BYTES + 1)), 1009, str(frames.MAX_PAYLOAD_BYTES)),
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", 1009, str(frames.MAX_PAYLOAD_BYTES)),  # refused by its length
        (b"\x89\x02hi", 1002, "masking"),
        (b"\x81\x00", 1002, "masking"),
        (said(9, b"x", head=0xC0), 1002, "reserved"),
        (said(1, b"x", head=0xA0), 1002, "reserved"),
        (said(10, b"x", head=0x90), 1002, "reserved"),
        *((said(opcode), 1002, "opcode") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (said(9, b"x" * 126), 1002, "control frame"),
        (said(8, b"\x03\xe8" + b"x" * 124), 1002, "control frame"),
        (said(9, b"x", head=0), 1002, "control frame"),
        (said(8, b"x"), 1002, "close frame"),
        *((said(8, code.to_bytes(2, "big")), 1002, "code") for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)),
        (said(8, b"\x03\xe8\xff\xfe"), 1007, "UTF-8"),
    ],
)
def test_what_is_refused_and_how(received: bytes, code: int, why: str) -> None:
    heard = parse(received)
    assert (heard.refused, heard.closed, heard.rest) == (code, None, b"")
    assert why in heard.why
    assert Frame(Opcode.CLOSE, frames.close(code, heard.why)[2:]).data  # it fits


FRAMES = st.builds(
    said,
    st.sampled_from([0, 1, 2, 3, 8, 9, 9, 9, 10, 10]),
    st.binary(max_size=130) | st.sampled_from([b"", b"\x03\xe8", b"\x03\xe8bye", b"x" * 5000]),
    head=st.sampled_from([0x80, 0x80, 0x80, 0, 0xC0]),
)


@given(st.lists(FRAMES | st.binary(max_size=40), max_size=8).map(b"".join), st.lists(st.integers(1, 60), max_size=40))
def test_it_does_not_matter_in_what_pieces_it_comes_and_little_of_it_is_held(received: bytes, sizes: list[int]) -> None:
    whole = parse(received)
    rest, ping, at = b"", None, 0
    for size in [*sizes, len(received)]:
        piece, at = received[at : at + size], at + size
        heard = parse(rest + piece)
        rest = heard.rest
        ping = heard.ping if heard.ping is not None else ping
        assert len(rest) <= frames.MAX_PAYLOAD_BYTES + 14
        if heard.refused is not None or heard.closed is not None:
            break
    assert (heard.refused, heard.closed, heard.why) == (whole.refused, whole.closed, whole.why)
    if whole.refused is None:
        assert (rest, ping) == (whole.rest, whole.ping)
