"""The process: `qgstream serve` from its configuration to its end.

`config` composes the settings of all rooms, `server` builds, starts, serves and stops. `preflight` and `capacity` are
what `qgstream check-config` and `qgstream doctor` say.
"""
