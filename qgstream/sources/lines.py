"""Lines out of bytes as they come, and events out of lines. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from qgstream.sources.base import Draft, Item, Refused

# text: the line is the data. json: the line is JSON, sent as it is written. event: the line is an event as
# `POST /events` takes one, which says its own topic.
Parse = Literal["text", "json", "event"]
Seconds = Annotated[float, Field(gt=0, le=86400, strict=True)]
# A line is held in memory until its end comes, and most programs never mean to write one of this size.
MAX_LINE_BYTES = 1024 * 1024
# At the beginning of a file or document that was made on Windows; RFC 8259, 8.1 lets a reader of JSON pass over it.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Raw = msgspec.json.Decoder(msgspec.Raw)
_Text = msgspec.json.Decoder(str)
_Fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Lines:
    """Splits bytes at LF, however they are cut. A line that grows beyond `max_bytes` is `None`: it is skipped."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._begun = bytearray()  # to which a part is added without a copy of what came before it
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that these bytes complete, without their ends (LF or CRLF)."""
        *whole, rest = data.split(b"\n")
        found: list[bytes | None] = []
        for line in whole:
            found += self._end(line)
        self._begin(rest, found)
        return found

    def rest(self) -> list[bytes | None]:
        """What has no end and will get none."""
        return self._end(b"") if self._begun else []

    def _begin(self, part: bytes, found: list[bytes | None]) -> None:
        if self._skipping:
            return
        self._begun += part
        if len(self._begun) > self._max_bytes:
            self._begun, self._skipping = bytearray(), True
            found.append(None)

    def _end(self, part: bytes) -> list[bytes | None]:
        line, skipped = bytes(self._begun + part) if self._begun else part, self._skipping
        self._begun, self._skipping = bytearray(), False
        if skipped:
            return []
        return [None if len(line) > self._max_bytes else line.removesuffix(b"\r")]


def event_of(line: bytes | None, topic: str, event: str | None, parse: Parse) -> Item:
    """What is published for a line."""
    if line is None:
        return Refused(f"got a line of more than {MAX_LINE_BYTES} bytes")
    if parse == "text":
        return Draft(topic, line.decode(errors="replace"), event)
    line = line.removeprefix(_BYTE_ORDER_MARK)
    try:
        line.decode()  # the decoders below pass over what they do not look at
        if parse == "json":
            return Draft(topic, _value(_Raw.decode(line)), event)
        fields = {
            # Over HTTP it has no unit in its name; see `draft.Body`.
            "retry_ms" if name == "retry" else name: _value(raw) if name == "data" else msgspec.json.decode(raw)
            for name, raw in _Fields.decode(line).items()
        }
        return {"topic": topic, "event": event} | fields
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        kind = "JSON" if parse == "json" else "a JSON object"
        return Refused(f"got a line that is not {kind}: {error}")


def _value(raw: msgspec.Raw) -> object:
    # As the HTTP interface: a string is sent as it is, and any other JSON as it was written: no number loses a digit.
    text = bytes(raw).strip()
    return _Text.decode(text) if text.startswith(b'"') else msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" "))
