"""The epoch of the log in a JetStream stream, its bounds, and the evidence that it is complete (`brokers.vouching`).

The name of the log's life and the signature at its end are in the stream's description. They are not in messages,
because any publisher could write such messages. The witness is a consumer in the server's memory.
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
# The description of the consumer with which a process follows the log.
FOLLOWER = "A process of qgstream"
# The server's error numbers (nats-server, server/errors.json).
_NO_CONSUMER, _NO_MESSAGE = 10014, 10037
# (epoch 7c1k9a until 812@1764300000000000000 after 3rw0cz-530,k2j3h4-12)
_LIFE = re.compile(r"(?:^| )\(epoch (\w+)(?: until (\d+)@(\d+))?(?: after ([\w,-]+))?\)$", re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Life(NamedTuple):
    """The part of the stream's description about the log; without a name if no process ever vouched for the log.

    A stream that was restored to an older state gets another life. `ended` is the sequence number in the signature, and
    the storage time of that message. `earlier` maps earlier lives, newest first, to the last number of each that is
    still valid.
    """

    name: str = ""
    ended: tuple[int, int] | None = None
    earlier: Mapping[str, int] = {}  # an immutable default: nothing changes the dict

    @classmethod
    def of(cls, config: Document) -> Life:
        """Return the life in a stream's configuration."""
        return _described(config)[1]

    def described(self, config: Document) -> Document:
        """Return the configuration with this life in its description."""
        until = "" if self.ended is None else " until {}@{}".format(*self.ended)
        after = ",".join(f"{name}-{number}" for name, number in self.earlier.items())
        text = f"(epoch {self.name}{until}{' after ' if after else ''}{after})"
        return {**config, "description": f"{_described(config)[0]} {text}".lstrip()}

    def next(self, witness: Document, ended: int | None) -> Life:
        """Return the next life.

        Its name comes from the server's data about the witness: all processes that start the life at the same time
        derive the same name, and no other run of the server leads to this name.
        """
        digest = sha256(f"{self.name} {witness['created']}".encode()).digest()
        return Life(_base36(int.from_bytes(digest[:5])), earlier=earlier_of(self.name, ended, self.earlier))


def _described(config: Document) -> tuple[str, Life]:
    """Split a stream's description: return the description without the life, and the life."""
    description = str(config.get("description", ""))
    found = _LIFE.search(description)
    if found is None:
        return description, Life()
    name, number, stamp, after = found.groups()
    pairs = [text.partition("-") for text in (after or "").split(",")]
    earlier = {name: int(number) for name, _, number in pairs if number.isdecimal()}
    return description[: found.start()], Life(name, (int(number), int(stamp)) if number else None, earlier)


def epoch(info: Document) -> str:
    """Return the epoch. A stream that was deleted and created again has another time; a restored older stream has
    another life."""
    return _epoch(info, Life.of(info["config"]).name)


def _epoch(info: Document, name: str) -> str:
    created = _base36(stored_at(info["created"]))
    return f"{created}.{name}" if name else created


def bounds(info: Document) -> Bounds:
    """Return the bounds of the stream."""
    state = info["state"]
    newest: int = state["last_seq"]
    return Bounds(epoch(info), state["first_seq"] - 1 if state["messages"] else newest, newest)


def stored_at(text: str) -> int:
    """Return a time of the API's documents (RFC 3339, up to nine digits after the second) in nanoseconds."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text


class Evidence:
    """The evidence that the log is complete. `api` sends a request to the JetStream API; `take_one` takes a message
    from a consumer."""

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
        self._life = Life()  # the last state seen

    async def _info(self) -> Document:
        return await self._api(f"STREAM.INFO.{self._stream}")

    async def _describe(self, info: Document, life: Life) -> None:
        await self._api(f"STREAM.UPDATE.{self._stream}", life.described(info["config"]))

    async def stamp_of(self, number: int) -> int | None:
        """Return when a message was stored; None for a message that was deleted individually."""
        try:
            found = await self._api(f"STREAM.MSG.GET.{self._stream}", {"seq": number})
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_MESSAGE:
                raise
            return None
        return stored_at(found["message"]["time"])

    # The witness.

    async def _witness(self) -> Document:
        """Return the witness; create it if there is none. It is not on disk, and consumes nothing by itself."""
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
        # A process that follows the log would itself notice a loss that a witness cannot prove.
        return _was_always_there(witness, info) or bool(await self._followers())

    async def _followers(self) -> set[str]:
        """Return the consumers with which processes follow the log; not all of them if the stream has hundreds of
        consumers."""
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
        """Sign the current end of the log of this epoch, unless another process follows the log. `follower` is this
        process's consumer."""
        if await self._followers() - {follower}:
            return
        info = await self._info()
        if epoch(info) == epoch_:
            state = info["state"]
            ended = state["last_seq"], max(0, stored_at(state["last_ts"]))  # an empty stream has a time in the year 1
            await self._describe(info, Life.of(info["config"])._replace(ended=ended))

    async def _signed_end(self, info: Document, life: Life) -> int | None:
        """Return the number in the signature, if the stream still contains the same message with this number."""
        if life.ended is None:
            return None
        (number, stamp), found = life.ended, bounds(info)
        if number > found.newest:
            return None
        return number if number <= found.forgotten or await self.stamp_of(number) == stamp else None

    # The life of the log.

    async def standing(self) -> Standing:
        """See `Vouching.standing`."""
        info = await self._info()
        life = Life.of(info["config"])
        self._life = life._replace(ended=None)
        is_witnessed, ended = await self._is_witnessed(info), await self._signed_end(info, life)
        earlier = {_epoch(info, name): number for name, number in life.earlier.items()}
        return Standing(epoch(info), is_witnessed, ended, earlier)

    async def begin(self) -> None:
        """Name the life of a stream without one: a new stream, or one whose description was changed while no process
        followed it."""
        info = await self._info()
        if not Life.of(info["config"]).name:
            await self.renew(epoch(info), None)

    async def renew(self, epoch_: str, ended: int | None) -> None:
        """See `Vouching.renew`."""
        witness, info = await self._witness(), await self._info()
        if epoch(info) == epoch_:
            await self._describe(info, Life.of(info["config"]).next(witness, ended))

    async def is_still(self, epoch_: str) -> bool:
        """Whether the log still has this epoch. Removes the signature of another process, because the log continues."""
        info = await self._info()
        life = Life.of(info["config"])
        if not life.name and self._life.name and _epoch(info, self._life.name) == epoch_:
            # A person or a tool has changed the stream's description.
            await self._describe(info, self._life)
        elif epoch(info) != epoch_:
            return False
        else:
            self._life = life._replace(ended=None)
        if life.ended is not None or not self._is_proof:
            await self.vouch()
        return True


def _was_always_there(witness: Document, info: Document) -> bool:
    """Whether a witness proves something.

    A cluster recreates the witness when a server restarts; such a witness has not received its message.
    """
    is_clustered = bool((info.get("cluster") or {}).get("name"))
    return not is_clustered or witness["delivered"]["consumer_seq"] > 0
