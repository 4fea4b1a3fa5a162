"""Which log a JetStream stream is, where it begins and ends, and whether that is all of it (`brokers.vouching`).

The name of the log's life and the signature at its end are in the stream's description. They are not in messages:
whoever may publish could write those. The witness is a consumer in the server's memory.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import nats.js.errors

from qgstream.brokers.remote import Bounds
from qgstream.brokers.vouching import Standing, earlier_of

Document = Mapping[str, Any]

WITNESS = "qgstream-witness"
# What the consumer by which a process follows the log says of itself.
FOLLOWER = "A process of qgstream"
# The server's numbers for errors (nats-server, server/errors.json).
_NO_CONSUMER, _NO_MESSAGE = 10014, 10037
# (epoch 7c1k9a until 812@1764300000000000000 after 3rw0cz-530,k2j3h4-12)
_LIFE = re.compile(r"(?:^| )\(epoch (\w+)(?: until (\d+)@(\d+))?(?: after ([\w,-]+))?\)$", re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Life(NamedTuple):
    """What the stream's description says of the log; without a name if no process ever vouched for it.

    A stream that came back older has another life. `ended` is the sequence number in the signature, and when that
    message was stored. `earlier` are lives before, newest first, with the number up to which their ids are good.
    """

    name: str = ""
    ended: tuple[int, int] | None = None
    earlier: Mapping[str, int] = {}  # a default, which nobody changes

    @classmethod
    def of(cls, config: Document) -> Life:
        """The life in a stream's configuration."""
        return _described(config)[1]

    def described(self, config: Document) -> Document:
        """The configuration with this life in its description."""
        until = "" if self.ended is None else " until {}@{}".format(*self.ended)
        after = ",".join(f"{name}-{number}" for name, number in self.earlier.items())
        text = f"(epoch {self.name}{until}{' after ' if after else ''}{after})"
        return {**config, "description": f"{_described(config)[0]} {text}".lstrip()}

    def next(self, witness: Document, ended: int | None) -> Life:
        """The life after this one, by what the server says of the witness: all who begin it at the same time give it
        the same name, and no other run of the server gives that name again."""
        digest = sha256(f"{self.name} {witness['created']}".encode()).digest()
        return Life(_base36(int.from_bytes(digest[:5])), earlier=earlier_of(self.name, ended, self.earlier))


def _described(config: Document) -> tuple[str, Life]:
    """A stream's description without its life, and that."""
    description = str(config.get("description", ""))
    found = _LIFE.search(description)
    if found is None:
        return description, Life()
    name, number, stamp, after = found.groups()
    pairs = [text.partition("-") for text in (after or "").split(",")]
    earlier = {name: int(number) for name, _, number in pairs if number.isdecimal()}
    return description[: found.start()], Life(name, (int(number), int(stamp)) if number else None, earlier)


def epoch(info: Document) -> str:
    """A stream that is deleted and made again has another time; one that went back in time has another life."""
    return _epoch(info, Life.of(info["config"]).name)


def _epoch(info: Document, name: str) -> str:
    created = _base36(stored_at(info["created"]))
    return f"{created}.{name}" if name else created


def bounds(info: Document) -> Bounds:
    """What the stream holds."""
    state = info["state"]
    newest: int = state["last_seq"]
    return Bounds(epoch(info), state["first_seq"] - 1 if state["messages"] else newest, newest)


def stored_at(text: str) -> int:
    """A time of the documents (RFC 3339, up to nine digits behind the second) in nanoseconds."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text


class Evidence:
    """What proves that the log is whole. `api` asks JetStream's interface; `take_one` asks a consumer for a message."""

    def __init__(
        self,
        stream: str,
        api: Callable[..., Awaitable[Document]],
        take_one: Callable[[str], Awaitable[None]],
    ) -> None:
        self._stream = stream
        self._api = api
        self._take_one = take_one
        self._is_proof = True
        self._life = Life()  # as it was seen last

    async def _info(self) -> Document:
        return await self._api(f"STREAM.INFO.{self._stream}")

    async def _describe(self, info: Document, life: Life) -> None:
        await self._api(f"STREAM.UPDATE.{self._stream}", life.described(info["config"]))

    async def stamp_of(self, number: int) -> int | None:
        """When a message was stored; None for one that was deleted by hand."""
        try:
            found = await self._api(f"STREAM.MSG.GET.{self._stream}", {"seq": number})
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_MESSAGE:
                raise
            return None
        return stored_at(found["message"]["time"])

    # The witness.

    async def _witness(self) -> Document:
        """The witness, which is made if there is none. It is on no disk, and consumes nothing by itself."""
        config = {"durable_name": WITNESS, "deliver_policy": "last", "ack_policy": "none", "mem_storage": True}
        document = {"stream_name": self._stream, "config": config}
        return await self._api(f"CONSUMER.DURABLE.CREATE.{self._stream}.{WITNESS}", document)

    async def _is_witnessed(self, info: Document) -> bool:
        try:
            witness = await self._api(f"CONSUMER.INFO.{self._stream}.{WITNESS}")
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_CONSUMER:
                raise
            return False
        # A process that follows the log would notice by itself what a witness cannot prove.
        return _was_always_there(witness, info) or bool(await self._followers())

    async def _followers(self) -> set[str]:
        """The consumers by which processes follow the log; of a stream with hundreds of consumers not all."""
        found = await self._api(f"CONSUMER.LIST.{self._stream}")
        return {
            consumer["name"]
            for consumer in found["consumers"]
            if consumer["config"].get("description") == FOLLOWER and consumer.get("push_bound")
        }

    async def vouch(self) -> None:
        """See `Vouching.vouch`."""
        witness, info = await self._witness(), await self._info()
        self._is_proof = _was_always_there(witness, info)
        if not self._is_proof and info["state"]["messages"]:
            await self._take_one(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{WITNESS}")
        life = Life.of(info["config"])
        if life.ended is not None:
            await self._describe(info, life._replace(ended=None))

    # The signature.

    async def sign(self, epoch_: str, follower: str) -> None:
        """Write down that the log of this epoch ends where it ends now, unless another process follows it. `follower`
        is the consumer of this one."""
        if await self._followers() - {follower}:
            return
        info = await self._info()
        if epoch(info) == epoch_:
            state = info["state"]
            ended = state["last_seq"], max(0, stored_at(state["last_ts"]))  # that of no message is in the year 1
            await self._describe(info, Life.of(info["config"])._replace(ended=ended))

    async def _signed_end(self, info: Document, life: Life) -> int | None:
        """The number in the signature, if the stream goes so far and has the same message there."""
        if life.ended is None:
            return None
        (number, stamp), found = life.ended, bounds(info)
        if number > found.newest:
            return None
        return number if number <= found.forgotten or await self.stamp_of(number) == stamp else None

    # The life.

    async def standing(self) -> Standing:
        """See `Vouching.standing`."""
        info = await self._info()
        life = Life.of(info["config"])
        self._life = life._replace(ended=None)
        is_witnessed, ended = await self._is_witnessed(info), await self._signed_end(info, life)
        earlier = {_epoch(info, name): number for name, number in life.earlier.items()}
        return Standing(epoch(info), is_witnessed, ended, earlier)

    async def begin(self) -> None:
        """Name the life of a stream that has none: it is new, or was described anew while no process followed it."""
        info = await self._info()
        if not Life.of(info["config"]).name:
            await self.renew(epoch(info), None)

    async def renew(self, epoch_: str, ended: int | None) -> None:
        """See `Vouching.renew`."""
        witness, info = await self._witness(), await self._info()
        if epoch(info) == epoch_:
            await self._describe(info, Life.of(info["config"]).next(witness, ended))

    async def is_still(self, epoch_: str) -> bool:
        """Whether the log is still of this epoch. Takes back the signature of another process: the log goes on."""
        info = await self._info()
        life = Life.of(info["config"])
        if not life.name and self._life.name and _epoch(info, self._life.name) == epoch_:
            # Somebody has described the stream anew, by hand or with a tool.
            await self._describe(info, self._life)
        elif epoch(info) != epoch_:
            return False
        else:
            self._life = life._replace(ended=None)
        if life.ended is not None or not self._is_proof:
            await self.vouch()
        return True


def _was_always_there(witness: Document, info: Document) -> bool:
    """Whether a witness proves something. A cluster makes it again when a server starts again, and then the witness has
    not got its message."""
    is_clustered = bool((info.get("cluster") or {}).get("name"))
    return not is_clustered or witness["delivered"]["consumer_seq"] > 0
