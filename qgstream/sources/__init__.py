"""Sources: events that the server fetches. `base` has the contract and finds sources by name; `runner` runs them.

Each ready-made source is a module of its own.
"""
