"""Stamps: how an event's payload says when it was sent. Pure.

A payload ends in `<nine digits of microseconds>@`. The mark is a single byte that occurs nowhere else in a stream, so
that events are counted exactly, wherever TCP cuts them, by counting a byte: 50 ns an event in Python.
"""

from __future__ import annotations

MARK = b"@"
# Microseconds of the monotonic clock modulo this; what is older than a thousand seconds looks young.
_WRAP = 10**9
_DIGITS = 9
MIN_BYTES = _DIGITS + len(MARK)


def stamped(size: int, now_ns: int) -> bytes:
    """A payload of `size` bytes (at least `MIN_BYTES`), sent at `now_ns` of the monotonic clock."""
    return b"%b%09d%b" % (b"x" * (size - MIN_BYTES), now_ns // 1000 % _WRAP, MARK)


def ages(received: bytes, now_ns: int) -> list[float]:
    """The seconds that each event ending in `received` took. One whose stamp was cut off at the front is left out."""
    now = now_ns // 1000
    stamps = [part[-_DIGITS:] for part in received.split(MARK)[:-1]]
    return [(now - int(stamp)) % _WRAP / 1e6 for stamp in stamps if len(stamp) == _DIGITS and stamp.isdigit()]
