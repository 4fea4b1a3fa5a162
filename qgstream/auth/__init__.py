"""Authentication: credentials in, a principal with its grants out.

The others use `authenticator` (with `AuthSettings` and `Principal`) and `jwks`. `qgstream token` uses `tokens` too.
"""
