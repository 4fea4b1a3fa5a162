"""The value of one request cookie. Pure. Source: RFC 6265, sections 4.2 and 5.4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from qgstream.errors import HeadersTooLarge

# RFC 6265, 6.1: a browser keeps at least 50 cookies of a site, of at least 4096 bytes each.
MAX_COOKIE_BYTES = 256 * 1024


def cookie_value(lines: Sequence[str], name: str) -> str | None:
    """Return the value of the cookie `name` in these `Cookie` header lines: None if missing, "" if empty.

    Of several cookies with this name, the first non-empty value counts: "Cookies with longer paths are listed before
    cookies with shorter paths", and many sites empty a cookie at logout instead of removing the cookie. Several header
    lines form one list (RFC 9113, 8.2.3: "joined using the two-octet delimiter of 0x3B, 0x20"). Raises
    `HeadersTooLarge`.
    """
    size = sum(map(len, lines))
    if size > MAX_COOKIE_BYTES:
        raise HeadersTooLarge(f"Cookie: got {size} bytes, expected at most {MAX_COOKIE_BYTES}")
    found = None
    for pair in _pattern(name).finditer("; ".join(lines)):
        value = pair[1].strip(" \t")
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]  # 4.1.1: a cookie-value may be in double quotes
        if value:
            return value
        found = ""
    return found


@lru_cache(8)  # only one setting names a cookie
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|;)[ \t]*+{re.escape(name)}[ \t]*+=([^;]*+)")
