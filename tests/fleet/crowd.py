"""Who makes the checker's trouble: subscribers with bad habits, and publishers in a hurry."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from qgstream.wire.sse import Parser
from tests.fleet.clients import Post, Stream
from tests.fleet.judge import Rules, Sent, Witness
from tests.fleet.ledger import Intent, Ledger, Place, Spec, Violation
from tests.serving import KEY

MAX_RETRY_SECONDS = 0.5
TOPICS = (*(f"{area}/{number}" for area in ("news", "orders", "orders/eu") for number in range(4)), "chatter")
EVENTS = (None, "created", "deleted")
FALSE_IDS = ("nonsense", "x" * 2000, "0123456789-5", "Bücher-1", "-", "a-99999999999999999999")
FUTURE = 9 * 10**18  # the offset of no event yet
RULES = Rules(short_lived=frozenset({"chatter"}))


@dataclass(frozen=True)
class Plan:
    """How much of everything. `events_per_second` is a mean: publishers write bursts at full speed.

    A run goes on beyond `seconds` until it has met each of `hardships`: on a busy machine less happens in a second.
    """

    seconds: float = 20.0
    round_seconds: float = 7.0
    subscribers: int = 200
    publishers: int = 4
    events_per_second: float = 150.0
    seed: int = 1
    key: str = KEY
    rules: Rules = RULES
    hardships: tuple[str, ...] = ()


class World:
    """What they all share. `urls` names the servers that may answer at each moment; `calm` is done when nobody shall
    make trouble."""

    def __init__(self, urls: Sequence[str], plan: Plan) -> None:
        self.urls = urls
        self.plan = plan
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter()
        self.calm: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, event: asyncio.Future[None], seconds: float) -> None:
        """Until it happens, the time is over, or calm is asked for."""
        await asyncio.wait({event, self.calm}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def spec(number: int, random: Random) -> Spec:
    """What the subscriber of this number asks for: each way of asking is there among any thirteen."""
    topics = random.sample(TOPICS[:-1], 3)
    asked = (
        Spec((topics[0],)),
        Spec(tuple(topics)),
        Spec(("orders/*",)),
        Spec(("orders/eu/*", topics[0], "orders/*")),
        Spec((), ("created",)),
        Spec((topics[0], "news/*"), ("message", "deleted")),
        Spec(),
        Spec(envelope=True),
        Spec((topics[0], topics[1]), envelope=True, privileged=True),
        Spec(privileged=True),
        Spec(("orders/*",), earliest=True),
        Spec(("quiet",)),
        Spec(("chatter", topics[0])),
    )[number % 13]
    http = "1.0" if random.random() < 0.15 else "1.1"
    return Spec(asked.topics, asked.events, asked.envelope, asked.earliest, asked.privileged, http)


class Subscriber:
    """An EventSource with bad habits. It keeps the id in force, comes back with it, and lets its witness judge."""

    def __init__(self, number: int, world: World) -> None:
        self._random = Random(f"{world.plan.seed} subscriber {number}")
        self._world = world
        self._number = number
        self.spec = spec(number, self._random)
        self.witness = Witness(f"subscriber {number}", self.spec, world.ledger, world.plan.rules, world.counts)
        self._id = ""
        self._retry_seconds = 0.1

    async def live(self) -> None:
        """Connect again and again."""
        while True:
            urls = self._world.urls
            if urls:
                try:
                    await self._stream(self._random.choice(urls))
                except OSError as error:
                    self.witness.leaves(f"{type(error).__name__} on connecting")
            await asyncio.sleep(self._random.random() * self._retry_seconds)

    def _sends(self) -> tuple[Sent, str]:
        chaos = not self._world.calm.done()
        if chaos and self._id and self._random.random() < 0.02:
            return "false", self._random.choice(FALSE_IDS)
        if chaos and self._id and self._random.random() < 0.02:
            return "false", f"{self._id.rpartition('-')[0]}-{FUTURE}"
        if self._id and not (chaos and self._random.random() < 0.02):
            return "own", self._id
        return ("earliest", "earliest") if self.spec.earliest else ("none", "")

    def _request(self, id: str) -> tuple[str, list[str]]:
        more, headers = {}, []
        if id and self._random.random() < 0.5:
            headers.append(f"Last-Event-ID: {id}")
        elif id:
            more[self._random.choice(("last_event_id", "lastEventId", "lastEventID"))] = id
        if self.spec.privileged:
            headers.append(f"Authorization: Bearer {self._world.plan.key}")
        return f"/events?{self.spec.query(**more)}", headers

    async def _stream(self, url: str) -> None:
        random, witness = self._random, self.witness
        sent, id = self._sends()
        cut_after = random.choice((300, 2000, 20_000)) if self._is_rude(0.15) else None
        parser = Parser(last_event_id=id if sent == "own" else "")
        stream = Stream(witness, parser, cut_after_bytes=cut_after and random.randrange(cut_after))
        witness.connects(sent, id, url)
        target, headers = self._request(id)
        buffer = 4096 if random.random() < 0.3 else None
        try:
            await stream.open(url, target, *headers, http=self.spec.http, receive_buffer=buffer)
            await self._behave(stream)
        finally:
            stream.cut(reset=random.random() < 0.5)
            if stream.violation is None:
                witness.leaves("left")
        if stream.violation is not None:
            raise stream.violation
        if parser.last_event_id:
            self._id = parser.last_event_id
        if parser.retry_ms is not None:
            self._retry_seconds = min(parser.retry_ms / 1000, MAX_RETRY_SECONDS)

    def _is_rude(self, share: float) -> bool:
        return not self._world.calm.done() and self._random.random() < share

    async def _behave(self, stream: Stream) -> None:
        random, world = self._random, self._world
        patience = random.expovariate(1 / 1.5)
        if self._is_rude(0.35):
            await world.wait(stream.closed, patience)
            world.counts["cuts"] += 1
            return
        if self._is_rude(0.5):
            await world.wait(stream.closed, patience / 3)
            stream.stall()
            self.witness.history.note("stops reading")
            world.counts["stalls"] += 1
            await world.wait(stream.closed, random.uniform(0.1, 3))
            if self._is_rude(0.3):
                return
            self.witness.history.note("reads again")
            stream.go_on()
        await stream.closed
        self.witness.history.note("the server closed")


class Publisher:
    """Publishes one by one and in batches, and notes what it is answered.

    What was not answered and has an idempotency key is published again until it is; without a key nobody knows.
    """

    def __init__(self, number: int, world: World) -> None:
        self._random = Random(f"{world.plan.seed} publisher {number}")
        self._world = world
        self._number = number
        self._made = 0
        self._newest: Place | None = None
        self._post: Post | None = None

    async def publish_for(self, seconds: float) -> None:
        """Bursts at full speed, with pauses that keep the mean."""
        random, plan = self._random, self._world.plan
        began, made_before = time.monotonic(), self._made
        while (elapsed := time.monotonic() - began) < seconds:
            due = plan.events_per_second / plan.publishers * elapsed
            if self._made - made_before <= due:
                for _ in range(random.choice((1, 1, 20, 100))):
                    await self.publish([self._intent() for _ in range(random.choice((1, 1, 1, 1, 2, 30)))])
                    if time.monotonic() - began > seconds:
                        break
            await asyncio.sleep(0.02)

    def _intent(self) -> Intent:
        random = self._random
        self._made += 1
        token = f"~{self._number}.{self._made}~"
        topics = tuple(random.sample(TOPICS, random.choice((1, 1, 1, 2, 4))))
        padding = random.choice((0, 20, 20, 100, 100, 100, 1000, 8000))
        key = token if random.random() < 0.5 else None
        event, private = random.choice(EVENTS), random.random() < 0.1
        return Intent(token, topics, event, private, random.random() < 0.8, padding, key)

    async def mark(self) -> Place:
        """Publish one more event, for certain, and return where it is: everybody must come as far."""
        self._made += 1
        token = f"~{self._number}.{self._made}~"
        await self.publish([Intent(token, (TOPICS[0],), key=token)])
        assert self._newest is not None
        return self._newest

    async def publish(self, intents: Sequence[Intent]) -> None:
        """Publish a batch; return when it is answered, or cannot be for want of a key."""
        ledger, counts = self._world.ledger, self._world.counts
        for intent in intents:
            ledger.intend(intent)
        may_repeat = all(intent.key for intent in intents)
        documents = [json.dumps(intent.document(), ensure_ascii=self._random.random() < 0.5) for intent in intents]
        content_type = "application/json" if len(intents) == 1 else "application/x-ndjson"
        body = "\n".join(documents).encode()
        while True:
            ids = await self._try(body, content_type)
            if ids is not None:
                self._note(intents, ids)
                counts["published"] += len(intents)
                counts["batches"] += len(intents) > 1
                return
            if not may_repeat:
                return
            await asyncio.sleep(0.05)

    async def _try(self, body: bytes, content_type: str) -> list[str] | None:
        urls = self._world.urls
        if not urls:
            return None
        if self._post is None or self._post.url not in urls or self._random.random() < 0.02:
            self.close()
            self._post = Post(self._random.choice(urls), self._world.plan.key)
        try:
            status, document = await self._post(body, content_type)
        except TimeoutError:
            raise Violation(f"publisher {self._number}", "an answer", "none in a minute") from None
        except (OSError, EOFError):
            self._world.counts["publishes not answered"] += 1
            return None
        if status == 503:
            self._world.counts["publishes answered 503"] += 1
            return None
        if status != 200:
            raise Violation(f"publisher {self._number}", "200", f"{status} {document}")
        ids = document.get("ids", [document.get("id")])
        assert isinstance(ids, list)
        return ids

    def _note(self, intents: Sequence[Intent], ids: Sequence[str]) -> None:
        me = f"publisher {self._number}"
        if len(ids) != len(intents):
            raise Violation(me, f"{len(intents)} ids", str(ids))
        for intent, id in zip(intents, ids, strict=True):
            place, newest = self._world.ledger.acknowledge(intent, id), self._newest
            if newest is not None and newest.epoch == place.epoch and place.offset <= newest.offset:
                raise Violation(me, f"an id above {newest}, which was answered before this was published", id)
            self._newest = place

    def close(self) -> None:
        """Close its connection."""
        if self._post is not None:
            self._post.close()
            self._post = None
