"""Whether a server keeps to a rate, judged so that a busy machine changes only how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def rate_is_kept(ask: Callable[[], bool], *, rate: float, burst: int, events: int) -> tuple[int, int]:
    """Ask as fast as possible until the rate alone has allowed `events`; returns how often it was allowed, and not.

    `ask` says whether the server allowed it. Asserts that the token bucket is full at the beginning, and is never
    filled more quickly or more slowly than with `rate` tokens a second.
    """
    began = time.monotonic()
    allowed = refused = in_a_row = 0
    empty_at, since = 0.0, 0  # at a refusal the bucket was empty; how many were allowed since then
    while since < events:
        asked_at = time.monotonic()
        if ask():
            allowed, in_a_row = allowed + 1, in_a_row + 1
            assert allowed <= burst + rate * (time.monotonic() - began) + 1
            continue
        assert allowed >= burst
        # Between two refusals the bucket may have been full, because this process had to wait: some was lost then.
        if refused and in_a_row < burst:
            since += in_a_row
            assert asked_at - empty_at < (since + 1) / rate
        else:
            empty_at, since = time.monotonic(), 0
        refused, in_a_row = refused + 1, 0
    return allowed, refused
