"""Changes of limits while the server runs: a partial object in, checked limits out. Pure, except for the descriptor
limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from qgstream.errors import ConfigError, Conflict, InvalidField
from qgstream.limits import LimitSettings
from qgstream.net.sockets import raise_descriptor_limit
from qgstream.suggestions import did_you_mean
from qgstream.validation import describe


def tune(
    limits: LimitSettings, changes: Mapping[str, object], *, streams: int, keys: Collection[str] = ()
) -> LimitSettings:
    """Return `limits` with these changes, for a process with `streams` open streams and with publish keys named `keys`.

    `per_key` is merged as in RFC 7396, key by key and limit by limit: None removes an entry. The soft limit on file
    descriptors is raised as far as needed.

    Raises `InvalidField` for the first wrong limit (unknown name, wrong type, out of bounds). Raises `Conflict` for
    more sockets than the process may have descriptors, for too few sockets to admit any client, and for an unknown key.
    """
    for name in changes:
        if name not in LimitSettings.model_fields:
            raise InvalidField(name[:100], f"unknown limit{did_you_mean(name, LimitSettings.model_fields)}")
    merged = limits.model_dump() | {name: _whole(value) for name, value in changes.items()}
    if "per_key" in changes:
        merged["per_key"] = _merge_keys(limits, changes["per_key"], keys)
    try:
        # Strict: here "20000" and true are mistakes, not numbers in another spelling as in the environment.
        tuned = LimitSettings.model_validate(merged, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        field = ".".join(map(str, details["loc"])) or "limits"
        raise InvalidField(field, describe(details, repr(details["input"])[:100], unknown="unknown limit")) from None
    if 0 < tuned.max_sockets <= streams:
        raise Conflict(
            "max_sockets",
            f"got {tuned.max_sockets} with {streams} streams open: the server would close every new socket at once, "
            "an operator's too; expected 0 or more than that",
        )
    try:
        raise_descriptor_limit(tuned)
    except ConfigError as error:
        name, _, message = error.problems[0].removeprefix("limits.").partition(": ")
        raise Conflict(name, message) from None
    return tuned


def carry_over(
    in_effect: LimitSettings, tuned: Collection[str], before: LimitSettings, after: LimitSettings
) -> tuple[LimitSettings, list[str], list[str]]:
    """Return the limits after a reload replaces the configured limits `before` by `after`, while an operator has
    changed (`tuned`) some limits of `in_effect`. Also return the names of tuned limits that were kept, and of those
    that were replaced.

    A limit that an operator changed in an emergency holds until the configuration gives that limit a new value.
    """
    kept = sorted(name for name in tuned if getattr(before, name) == getattr(after, name))
    limits = after.model_copy(update={name: getattr(in_effect, name) for name in kept})
    return limits, kept, sorted(set(tuned) - set(kept))


def _merge_keys(limits: LimitSettings, changes: object, known: Collection[str]) -> object:
    if not isinstance(changes, Mapping):
        return changes  # `model_validate` refuses this value
    merged: dict[str, Any] = {name: own.model_dump(exclude_none=True) for name, own in limits.per_key.items()}
    for name, change in changes.items():
        if change is None:
            merged.pop(name, None)
        elif name not in known:
            # The text is not repeated: it may be the key itself.
            raise Conflict("per_key", "got an unknown name, expected that of a key in auth.publish_keys")
        elif isinstance(change, Mapping):
            own = merged.get(name, {}) | {field: _whole(value) for field, value in change.items()}
            merged[name] = {field: value for field, value in own.items() if value is not None}
        else:
            merged[name] = change
    return merged


def _whole(value: object) -> object:
    """Return whether the number is whole: JSON does not distinguish 10.0 from 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
