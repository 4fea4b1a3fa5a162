"""Requests that nearly follow the grammar of HTTP: what a seed says, and in which pieces. Pure.

Each part is right most of the time, so that what is wrong with another part is reached.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Literal
from urllib.parse import quote_from_bytes

from tests.serving import KEY

ADMIN_KEY = "admin-key"
# `wait`: until the server has closed what was half-closed here. The others do not look back.
End = Literal["wait", "close", "reset"]

CRLF = b"\r\n"
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
ODD_METHODS = (b"get", b"", b"G\0T", b"GET\t", b"PRI", b"X" * 300, b"G\xe9T", b"A-B", b"{}")
PATHS = (
    b"/events", b"/events", b"/events", b"/health", b"/ready", b"/metrics", b"/", b"/admin", b"/admin/",
    b"/admin/overview", b"/admin/limits", b"/admin/connections", b"/admin/connections/1", b"/admin/topics",
    b"/admin/config",
    b"/admin/bans", b"/admin/bans/1", b"/admin/maintenance", b"/admin/shed", b"/admin/evictions",
    b"/admin/openapi.json", b"/openapi.json", b"/docs", b"/nothing",
)  # fmt: skip
ODD_PATHS = (
    b"", b"*", b"//", b"/..", b"/events/", b"/events//", b"/EVENTS", b"/%65vents", b"/%", b"/%00", b"/\xff",
    b"http://127.0.0.1/events", b"http://[::1", b"http://a:b@c/events", b"//events", b"/events;a=b", b"/events#a",
    b"/admin/connections/" + b"9" * 40, b"/admin/connections/-1", b"127.0.0.1:443", b"?", b"/events?", b"/" * 2000,
)  # fmt: skip
PARAMETERS = (
    b"topic", b"topic", b"topic", b"event", b"envelope", b"replay", b"last_event_id", b"lastEventId", b"lastEventID",
    b"access_token", b"limit", b"id", b"ip", b"topic[]", b"", b"nothing",
)  # fmt: skip
VERSIONS = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0")
ODD_VERSIONS = (b"", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/11", b"http/1.1", b"HTTP/1.1 ", b"HTTP/-1.1", b"\0")
WORDS = (
    b"a", b"news", b"news/*", b"*", b"**", b"a*b", b"earliest", b"latest", b"1", b"true", b"", b" ", b"x" * 300,
    "Bücher".encode(), b"\xff\xfe", b"\0", b"\r\n", b"\n\ndata: injected\n\n", b"a\rb", b"\xed\xa0\x80", b"%", b"{}",
    b"'\"<>", b"\xe2\x80\xa8", b"-1", b"1e999", b"0123456789abcdef-18446744073709551616", b"epoch-7", b"..", b"~._-",
)  # fmt: skip
JSON_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1.5, 1e308, 2**70, "", "text", "a\nb\r\nc\rd", "\u2028\u0085", "\0", "x" * 3000, [], {},
    [1, [2]], {"a": {"b": None}}, ["a", "b*"], "*", "news", "\ud800",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Talk:
    """What one connection says, in these pieces, and how it ends. `is_whole`: nothing is wrong with its first request,
    so that it must be answered."""

    pieces: tuple[bytes, ...]
    end: End
    is_whole: bool

    @property
    def said(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)


def talk(seed: int) -> Talk:
    """The conversation of this seed: always the same one."""
    random = Random(seed)
    is_whole = random.random() < 0.3
    said = whole_request(random) if is_whole else b""
    for _ in range(random.choice((0, 0, 0, 1, 3)) if is_whole else random.choice((1, 1, 1, 2, 4))):
        said += request(random)
    if not is_whole and random.random() < 0.15:
        said = spoil(random, said)
    if not is_whole and random.random() < 0.15:
        said = said[: random.randrange(len(said) + 1)]
    end: End = "wait" if is_whole else random.choice(("wait", "wait", "close", "reset"))
    return Talk(tuple(cut(random, said)), end, is_whole)


def cut(random: Random, said: bytes) -> list[bytes]:
    """In one piece, in a few, or byte by byte."""
    way = random.random()
    if way < 0.6 or len(said) < 2:
        return [said]
    if way < 0.7 and len(said) <= 600:
        return [said[at : at + 1] for at in range(len(said))]
    at = sorted(random.sample(range(1, len(said)), min(len(said) - 1, random.randrange(1, 6))))
    return [said[begin:end] for begin, end in zip([0, *at], [*at, len(said)], strict=True)]


def spoil(random: Random, said: bytes) -> bytes:
    """Some bytes are others, gone, or there twice."""
    spoilt = bytearray(said)
    for _ in range(random.choice((1, 1, 3, 10))):
        at = random.randrange(len(spoilt) or 1)
        spoilt[at : at + random.choice((0, 1, 1, 5))] = random.choice(
            (b"", random.randbytes(1), b"\0", b"\r", b"\n", b"\r\n", b" ", b":", b"\xff", bytes(spoilt[at : at + 8]))
        )
    return bytes(spoilt)


def whole_request(random: Random) -> bytes:
    """One that nothing is wrong with."""
    if random.random() < 0.4:
        body = json.dumps({"topic": random.choice(("a", "news", "news/1")), "data": random.choice(JSON_VALUES[:-1])})
        head = (b"POST /events HTTP/1.1", b"Content-Type: application/json", b"Content-Length: %d" % len(body))
        return CRLF.join((*head, b"Host: x", b"Authorization: Bearer " + KEY.encode(), b"", body.encode()))
    target = random.choice((b"/health", b"/ready", b"/metrics", b"/", b"/events", b"/events?topic=a", b"/nothing"))
    return CRLF.join((random.choice((b"GET ", b"HEAD ")) + target + b" HTTP/1.1", b"Host: x", b"", b""))


def request(random: Random) -> bytes:
    """One that something may be wrong with."""
    method = random.choice(METHODS if random.random() < 0.9 else ODD_METHODS)
    if random.random() < 0.35:
        method = b"POST"
    version = random.choice(VERSIONS if random.random() < 0.93 else ODD_VERSIONS)
    space = b" " if random.random() < 0.97 else random.choice((b"  ", b"\t", b"", b"\x0b"))
    body = make_body(random) if method == b"POST" or random.random() < 0.1 else None
    lines = [method + space + target(random) + space + version, *headers(random)]
    if body is not None:
        more, body = framed(random, body)
        lines += more
    random_end = random.random()
    end = CRLF if random_end < 0.93 else b"\n" if random_end < 0.98 else b"\r"
    return end.join([*lines, b"", body or b""])


def target(random: Random) -> bytes:
    """A path and mostly a query."""
    path = random.choice(PATHS if random.random() < 0.85 else ODD_PATHS)
    pairs = []
    for _ in range(random.choice((0, 0, 1, 1, 2, 5, 70))):
        value = random.choice(WORDS) if random.random() < 0.9 else random.randbytes(random.randrange(40))
        quoted = quote_from_bytes(value, safe="").encode() if random.random() < 0.9 else value
        pairs.append(random.choice(PARAMETERS) + (b"=" if random.random() < 0.95 else b"") + quoted)
    return path + (b"?" + random.choice((b"&", b"&", b"&", b";")).join(pairs) if pairs else b"")


def headers(random: Random) -> list[bytes]:
    """Those that something here looks at, with values of all kinds, and a few that are none."""
    made = [b"Host: 127.0.0.1"] if random.random() < 0.93 else []
    names = random.sample(sorted(_HEADERS), random.choice((0, 1, 2, 3, 6)))
    for name in names:
        value = random.choice(_HEADERS[name]) if random.random() < 0.75 else random.choice(WORDS)
        made.append(name + b": " + value)
        if random.random() < 0.03:
            made.append(made[-1])
    if random.random() < 0.06:
        made.append(
            random.choice(
                (b"no colon", b": empty", b" folded", b"a b: c", b"x\0y: z", b"X: \xff\xfe", b"X:" + b" " * 900)
            )
        )
    random.shuffle(made)
    return made


_BEARER = b"Bearer " + KEY.encode()
_HEADERS: dict[bytes, tuple[bytes, ...]] = {
    b"Accept": (b"text/event-stream", b"*/*", b"application/openmetrics-text", b"text/event-stream;q=x,,,;"),
    b"Last-Event-ID": (b"earliest", b"0123456789abcdef-1", b"-", "Bücher".encode(), b"x" * 2000, b"a\tb"),
    b"Authorization": (
        _BEARER, _BEARER, b"Bearer " + ADMIN_KEY.encode(), b"Bearer", b"Basic YTpi", b"Bearer a.b.c", b"bearer \xff",
        b"Bearer eyJhbGciOiJub25lIn0.e30.", b"Digest a=b",
    ),
    b"Content-Type": (b"application/json", b"application/json; charset=x", b"application/x-ndjson", b"text/plain"),
    b"Content-Encoding": (b"gzip", b"identity"),
    b"Expect": (b"100-continue", b"200-ok"),
    b"Connection": (b"close", b"keep-alive", b"upgrade", b"Close, x", b"Content-Length"),
    b"Upgrade": (b"websocket", b"h2c"),
    b"Origin": (b"https://a.example", b"null", b"https://a.example\tb", b"http://[", b"*"),
    b"Access-Control-Request-Method": (b"POST", b"x"),
    b"Access-Control-Request-Headers": (b"authorization", b"a,b,,"),
    b"X-Forwarded-For": (b"192.0.2.1", b"1.2.3.4, [::1]:5, x", b"::ffff:1.2.3.4", b"," * 500, b"[", b"999.1.1.1"),
    b"X-Real-Ip": (b"192.0.2.1", b"x"),
    b"X-Forwarded-Proto": (b"https", b"x"),
    b"Cookie": (b"a=b", b"a=b; =; ;;", b'token="x', b"token=" + KEY.encode()),
    b"If-None-Match": (b"*", b'"x"'),
    b"Range": (b"bytes=0-1", b"bytes=-"),
    b"User-Agent": (b"x" * 3000, b"\xf0\x9f\x98\x80", b"a\tb"),
    b"Trailer": (b"X",),
    b"Content-Length": (b"0", b"-1", b"1, 2", b"3", b"0x1", b"1_0", b"9" * 30, "٣".encode(), b"+1", b"10000000"),
    b"Transfer-Encoding": (b"chunked", b"identity", b"gzip, chunked", b"chunked, chunked", b"Chunked", b"x"),
}  # fmt: skip


def make_body(random: Random) -> bytes:
    """An event, a batch, or what is neither."""
    way = random.random()
    if way < 0.1:
        return random.choice(
            (b"", b"{}", b"[]", b"null", b"\xef\xbb\xbf{}", b"{" * 3000, b"[" * 3000, b"\xff\xfe", b'"')
        )
    body = b"\n".join(make_event(random) for _ in range(random.choice((1, 1, 1, 2, 8))))
    return body if way < 0.7 else spoil(random, body)


def make_event(random: Random) -> bytes:
    """One object as JSON, each field mostly right."""
    document: dict[str, object] = {}
    for name, right in _FIELDS.items():
        if random.random() < (0.95 if name in ("topic", "data") else 0.2):
            document[name] = random.choice(right) if random.random() < 0.85 else random.choice(JSON_VALUES)
    if random.random() < 0.05:
        document[random.choice(("id", "Topic", "", "a\nb"))] = 1
    return json.dumps(document, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


_FIELDS: dict[str, tuple[object, ...]] = {
    "topic": ("a", "news", "news/1", ["a", "news"], "Bücher"),
    "data": JSON_VALUES,
    "event": ("created", "message", "a b"),
    "retry": (0, 1000, 1.5),
    "private": (True, False),
    "idempotency_key": ("k1", "k2", "k3"),
}


def framed(random: Random, body: bytes) -> tuple[list[bytes], bytes]:
    """The headers that say how long it is, and the body as it goes over the wire."""
    way = random.random()
    # Mostly with what a publish needs.
    more = [b"Authorization: " + _BEARER] if random.random() < 0.7 else []
    if random.random() < 0.8:
        more.append(b"Content-Type: " + (b"application/x-ndjson" if random.random() < 0.5 else b"application/json"))
    if way < 0.6:
        return [*more, b"Content-Length: %d" % len(body)], body
    if way < 0.7:
        wrong = max(0, len(body) + random.choice((-5, -1, 1, 50)))
        return [*more, b"Content-Length: %d" % wrong], body
    if way < 0.95:
        return [*more, b"Transfer-Encoding: chunked"], chunked(random, body)
    return more, body


def chunked(random: Random, body: bytes) -> bytes:
    """In chunks, a few of them broken."""
    made = b""
    while body:
        size = random.randrange(1, len(body) + 1)
        part, body = body[:size], body[size:]
        extension = b";a=b" if random.random() < 0.05 else b""
        head = (
            b"%x" % len(part)
            if random.random() < 0.97
            else random.choice((b"", b"-1", b"0x1", b"ffffffffffffffff", b"g"))
        )
        made += head + extension + CRLF + part + (CRLF if random.random() < 0.98 else b"")
    last = random.random()
    return made + (b"0\r\n\r\n" if last < 0.9 else b"0\r\nX: y\r\n\r\n" if last < 0.95 else b"")
