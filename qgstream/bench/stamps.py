"""Stamps: the time of the publish, in an event's payload. Pure.

A payload ends in `<nine digits of microseconds>@`. The mark is a single byte that occurs nowhere else in a stream. So
counting this byte counts events exactly, wherever TCP cuts them: 50 ns an event in Python.
"""

from __future__ import annotations

MARK = b"@"
# The microseconds of the monotonic clock modulo this number; an age over a thousand seconds looks smaller.
_WRAP = 10**9
_DIGITS = 9
MIN_BYTES = _DIGITS + len(MARK)


def stamped(size: int, now_ns: int) -> bytes:
    """Return a payload of `size` bytes (at least `MIN_BYTES`), sent at `now_ns` of the monotonic clock."""
    return b"%b%09d%b" % (b"x" * (size - MIN_BYTES), now_ns // 1000 % _WRAP, MARK)


def ages(received: bytes, now_ns: int) -> list[float]:
    """Yield the age in seconds of each event that ends in `received`. An event whose stamp was cut off at the front is
    left out."""
    now = now_ns // 1000
    stamps = [part[-_DIGITS:] for part in received.split(MARK)[:-1]]
    return [(now - int(stamp)) % _WRAP / 1e6 for stamp in stamps if len(stamp) == _DIGITS and stamp.isdigit()]
