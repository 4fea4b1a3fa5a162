"""The process: `qgstream serve` from its configuration to its end.

`config` composes the settings of all packages. `server` builds, starts, serves and stops. `preflight` and `capacity`
are the checks of `qgstream check-config` and `qgstream doctor`.
"""
