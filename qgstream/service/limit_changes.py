"""Limits changed while the server runs: a partial object in, checked limits out. Pure but for the descriptor limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from qgstream.errors import ConfigError, Conflict, InvalidField
from qgstream.limits import LimitSettings
from qgstream.net.sockets import raise_descriptor_limit
from qgstream.suggestions import did_you_mean


def tune(
    limits: LimitSettings, changes: Mapping[str, object], *, streams: int, keys: Collection[str] = ()
) -> LimitSettings:
    """The limits with these changes, for a process with so many streams open and publish keys of these names.

    `per_key` is merged key by key and limit by limit, as RFC 7396 has it: None removes. The soft limit on descriptors
    is raised as far as needed.

    Raises `InvalidField` that names the first wrong one (unknown, of a wrong type, out of its bounds), and `Conflict`
    for more sockets than the process may have descriptors, or too few to let anybody in, and for an unknown key.
    """
    for name in changes:
        if name not in LimitSettings.model_fields:
            raise InvalidField(name[:100], f"unknown limit{did_you_mean(name, LimitSettings.model_fields)}")
    merged = limits.model_dump() | {name: _whole(value) for name, value in changes.items()}
    if "per_key" in changes:
        merged["per_key"] = _merge_keys(limits, changes["per_key"], keys)
    try:
        # Strict: "20000" and true are mistakes here, not spellings of a number as in the environment.
        tuned = LimitSettings.model_validate(merged, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        field = ".".join(map(str, details["loc"])) or "limits"
        expected = details["msg"].removeprefix("Input should be ")
        raise InvalidField(field, f"got {repr(details['input'])[:100]}, expected {expected}") from None
    if 0 < tuned.max_sockets <= streams:
        raise Conflict(
            "max_sockets",
            f"got {tuned.max_sockets} with {streams} streams open: every new socket would be closed at once, "
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
    """The limits after a reload that replaces the configured limits `before` by `after`, while those that are `tuned`
    hold `in_effect`; and the names of the tuned ones that were kept, and of those that were not.

    What an operator changed in an emergency holds until the configuration says something new about it.
    """
    kept = sorted(name for name in tuned if getattr(before, name) == getattr(after, name))
    limits = after.model_copy(update={name: getattr(in_effect, name) for name in kept})
    return limits, kept, sorted(set(tuned) - set(kept))


def _merge_keys(limits: LimitSettings, changes: object, known: Collection[str]) -> object:
    if not isinstance(changes, Mapping):
        return changes  # for `model_validate` to refuse
    merged: dict[str, Any] = {name: own.model_dump(exclude_none=True) for name, own in limits.per_key.items()}
    for name, change in changes.items():
        if change is None:
            merged.pop(name, None)
        elif name not in known:
            # Not repeated: it may be the key itself.
            raise Conflict("per_key", "got an unknown name, expected that of a key in auth.publish_keys")
        elif isinstance(change, Mapping):
            own = merged.get(name, {}) | {field: _whole(value) for field, value in change.items()}
            merged[name] = {field: value for field, value in own.items() if value is not None}
        else:
            merged[name] = change
    return merged


def _whole(value: object) -> object:
    """JSON does not tell 10.0 from 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
