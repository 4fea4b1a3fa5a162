"""The base of every configuration section: unknown keys are errors and values never change in place.

A section is declared beside the code it tunes (`limits.LimitSettings`, `heartbeat.HeartbeatSettings`, ...);
`config` composes them. A reload builds new sections and swaps them, so a reader never sees half a change.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One `[section]` of the configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
