"""HTTP: the paths, their handlers and their texts. Requests and responses are known in this package only.

`app` has the table of paths, and `routes` for programs that embed qgstream.
"""
