"""Authentication: turns credentials into a principal with its grants.

Other packages use `authenticator` (with `AuthSettings` and `Principal`) and `jwks`. The command `qgstream token` also
uses `tokens`.
"""
