"""The base of every configuration section: unknown keys are errors, and values are immutable.

Each section is declared in the module that uses its settings (`limits.LimitSettings`, `heartbeat.HeartbeatSettings`,
...); `config` combines the sections. A reload builds new sections and replaces the old ones, so code never sees a
partial change.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One `[section]` of the configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
