"""Splits bytes into lines, and makes events from lines. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from qgstream.sources.base import Draft, Item, Unpublishable

# text: the line is the data. json: the line is JSON, sent as written. event: the line is an event in the form of `POST
# /events`, with its own topic.
Parse = Literal["text", "json", "event"]
Seconds = Annotated[float, Field(gt=0, le=86400, strict=True)]
# A line is held in memory until its end arrives, and few programs mean to write a line of this size.
MAX_LINE_BYTES = 1024 * 1024
# The start of a file or document from Windows; RFC 8259, 8.1 allows a JSON reader to skip the mark.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Raw = msgspec.json.Decoder(msgspec.Raw)
_Text = msgspec.json.Decoder(str)
_Fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class LineSplitter:
    """Splits bytes at LF, wherever the pieces are cut. A line longer than `max_bytes` becomes `None`: it is skipped."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._begun = bytearray()  # a part is appended without a copy of the earlier parts
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines that these bytes complete, without their ends (LF or CRLF)."""
        *whole, rest = data.split(b"\n")
        found: list[bytes | None] = []
        for line in whole:
            found += self._end(line)
        self._begin(rest, found)
        return found

    def rest(self) -> list[bytes | None]:
        """Return the last line, which has no end."""
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
    """Return the event for a line."""
    if line is None:
        return Unpublishable(f"got a line of more than {MAX_LINE_BYTES} bytes")
    if parse == "text":
        return Draft(topic, line.decode(errors="replace"), event)
    line = line.removeprefix(_BYTE_ORDER_MARK)
    try:
        line.decode()  # checks the UTF-8: the decoders below skip parts that they do not need
        if parse == "json":
            return Draft(topic, _value(_Raw.decode(line)), event)
        fields = {
            # In HTTP the name has no unit; see `draft.Body`.
            "retry_ms" if name == "retry" else name: _value(raw) if name == "data" else msgspec.json.decode(raw)
            for name, raw in _Fields.decode(line).items()
        }
        return {"topic": topic, "event": event} | fields
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        kind = "JSON" if parse == "json" else "a JSON object"
        return Unpublishable(f"got a line that is not {kind}: {error}")


def _value(raw: msgspec.Raw) -> object:
    # As in the HTTP interface: a string is sent as it is, and any other JSON as written, so no number loses a digit.
    text = bytes(raw).strip()
    return _Text.decode(text) if text.startswith(b'"') else msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" "))
