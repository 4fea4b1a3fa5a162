"""The contract of a source: an async generator of events, found by its name and called with its options.

    async def prices(*, url: str, topic: str = "prices") -> AsyncIterator[Draft]:
        async for price in somewhere(url):
            yield Draft(topic, {"price": price}, event="changed")

A source yields a `Draft`, a dict with the same names (the arguments of `Hub.publish`), or a list of these. It may await
anything. The runner asks for the next item when the yielded events are in the log. A source must not block the event
loop.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from qgstream.errors import BadRequest, ConfigError, InvalidField
from qgstream.events.draft import draft
from qgstream.events.publication import Publication
from qgstream.settings import Section
from qgstream.sources.options import check_options
from qgstream.suggestions import did_you_mean

# The group of entry points in which packages register sources: `use = "NAME"` finds them.
ENTRY_POINTS = "qgstream.sources"
# A name is a label in the metrics.
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"

Restart = Literal["on-failure", "always"]


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that a source yields. The names are those of `Hub.publish`.

    Attributes:
        topic: The topic, or a list of topics.
        data: A string, which is sent as it is, or anything that JSON can hold.
        event: The type of the event.
        retry_ms: After how many milliseconds a browser that gets the event reconnects, from then on.
        private: Whether only streams whose credentials grant the topic get the event.
        idempotency_key: A name for the event. The hub publishes one event for a key within five minutes.

    Example::

        from collections.abc import AsyncIterator

        import qgstream

        async def prices() -> AsyncIterator[qgstream.Draft]:
            yield qgstream.Draft("prices", {"price": 7}, event="changed")
    """

    topic: str | Sequence[str]
    data: object
    event: str | None = None
    retry_ms: int | None = None
    private: bool = False
    idempotency_key: str | None = None

    def publication(self, max_event_bytes: int, *, namespace: bytes) -> Publication:
        """Check the event and encode it.

        Args:
            max_event_bytes: The most bytes that its data may have.
            namespace: The namespace of the source that publishes it, for its idempotency key.

        Returns:
            The publication.

        Raises:
            InvalidField: A field has a value that it cannot have.
            TooLarge: The data is too large.
        """
        if not isinstance(self.private, bool):
            raise InvalidField("private", f"got {type(self.private).__name__}, expected true or false")
        return draft(
            self.topic, self.data, event=self.event, retry_ms=self.retry_ms, private=self.private,
            idempotency_key=self.idempotency_key, namespace=namespace, max_event_bytes=max_event_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unpublishable:
    """A source yields this in place of an invalid event: it is logged and counted."""

    reason: str


Item = Draft | Mapping[str, object] | Unpublishable
Events = AsyncGenerator[Item | Sequence[Item], None]
# An async generator function is often annotated with only AsyncIterator.
Function = Callable[..., AsyncIterator[Item | Sequence[Item]]]

_FIELDS = tuple(field.name for field in fields(Draft))


class SourceFailed(Exception):
    """Raised by a source that cannot go on, for a reason that the message says.

    The log has the message without a traceback, and the source is called again later.

    Example::

        from collections.abc import AsyncIterator

        import qgstream

        async def prices(*, url: str) -> AsyncIterator[qgstream.Draft]:
            if not url.startswith("https:"):
                raise qgstream.SourceFailed(f"url: got {url!r}, expected https")
            yield qgstream.Draft("prices", {"price": 7})
    """


def as_draft(item: object) -> Draft:
    """Return an item that a source yielded as a draft. Raises `BadRequest` for any other item."""
    if isinstance(item, Draft):
        return item
    if isinstance(item, Unpublishable):
        raise BadRequest(item.reason)
    if not isinstance(item, Mapping):
        raise BadRequest(f"got {type(item).__name__}, expected a dict with topic and data, a Draft, or a list of them")
    for name in item:
        if name not in _FIELDS:
            raise InvalidField(str(name)[:100], f"unknown field{did_you_mean(str(name), _FIELDS)}")
    for name in ("topic", "data"):
        if name not in item:
            raise InvalidField(name, "not set, expected a value")
    return Draft(**item)


class SourceSettings(Section):
    """`[[sources]]`: sources of events besides publishers. The server restarts a source after a failure."""

    secret_fields: ClassVar[frozenset[str]] = frozenset({"options"})

    use: str | None = Field(
        None,
        description="A built-in source (clock, file, process, url), or a source from an installed package.",
        examples=["clock"],
    )
    import_: Annotated[str, StringConstraints(pattern=r"^[\w.]+:[\w.]+$")] | None = Field(
        None, alias="import", description="Or a source of your own: an async generator function.",
        examples=["myapp.feeds:prices"],
    )  # fmt: skip
    name: Annotated[str, StringConstraints(pattern=_NAME)] | None = Field(
        None, description="Unique name in the log and in metrics; default: the value of `use`, or the function's name.",
        examples=["prices"],
    )  # fmt: skip
    restart: Restart = Field(
        "on-failure", description='With "always" the server also restarts a source that ended without an error.'
    )  # fmt: skip
    options: dict[str, Any] = Field({}, description="Arguments of the source. The server never shows them.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.use is None) == (self.import_ is None):
            got = "neither use nor import" if self.use is None else "use and import"
            raise ValueError(f"got {got}, expected one of them")
        return self

    @property
    def label(self) -> str:
        """The source's name."""
        return self.name or self.use or (self.import_ or "").rpartition(":")[2]


@dataclass(frozen=True, slots=True)
class Source:
    """A source that can be run: its name, its function, and whether it is restarted after its end."""

    name: str
    events: Callable[[], AsyncIterator[Item | Sequence[Item]]]
    restart: Restart = "on-failure"


# The modules beside this one. The ready-made sources come first: no package can take one of their names.
READY = {"clock": "clock:clock", "file": "file:file", "process": "process:process", "url": "url:url"}


def open_sources(settings: Sequence[SourceSettings]) -> list[Source]:
    """Return the configured sources, imported and with checked options; none of them runs yet.

    Raises `ConfigError` with the problem of each.
    """
    sources, problems = [], []
    for index, one in enumerate(settings):
        try:
            sources.append(_open(one, f"sources[{index}]"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sources


def _open(settings: SourceSettings, place: str) -> Source:
    where = f"{place}.use" if settings.use is not None else f"{place}.import"
    function = check_function(_find(settings, where), f"{where}: {settings.use or settings.import_}")
    options = check_options(function, settings.options, f"{place}.options")
    return Source(settings.label, partial(function, **options), settings.restart)


def check_function(found: object, what: str) -> Function:
    """Return `found` if it is an async generator function. Raises `ConfigError` otherwise."""
    if not inspect.isasyncgenfunction(found):
        kind = "a coroutine function" if inspect.iscoroutinefunction(found) else f"{type(found).__name__}"
        raise ConfigError([f"{what}: got {kind}, expected an async generator function (async def with yield)"])
    function: Function = found
    return function


def _find(settings: SourceSettings, where: str) -> object:
    if settings.import_ is not None:
        # As in other servers, a module beside the project's configuration is found. This path is last, so that it hides
        # no module.
        if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds text
            sys.path.append(os.getcwd())  # noqa: PTH109
        return _imported(settings.import_, where)
    name = settings.use or ""
    if name in READY:
        return _imported(f"{__package__}.{READY[name]}", where)
    brought = entry_points(group=ENTRY_POINTS)
    found = [point for point in brought if point.name == name]
    if not found:
        known = sorted({*READY, *brought.names})
        hint = did_you_mean(name, known)
        raise ConfigError([f"{where}: got {name!r}, expected one of {', '.join(known)}{hint}"])
    if len({point.value for point in found}) > 1:
        raise ConfigError(
            [f"{where}: {name}: several packages have a source of this name: {', '.join(map(_package, found))}"]
        )
    return _imported(found[0].value, where)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _imported(target: str, where: str) -> object:
    module, _, names = target.partition(":")
    try:
        found: object = import_module(module)
    except Exception as error:
        # For an error in a user's code, the last line of the traceback says where.
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if isinstance(error, ModuleNotFoundError) else f" ({last.filename}, line {last.lineno})"
        raise ConfigError([f"{where}: {target}: cannot be imported: {type(error).__name__}: {error}{at}"]) from error
    for name in names.split("."):
        if not hasattr(found, name):
            hint = did_you_mean(name, [known for known in dir(found) if not known.startswith("_")])
            raise ConfigError([f"{where}: {target}: {module} has no {names}{hint}"])
        found = getattr(found, name)
    return found
