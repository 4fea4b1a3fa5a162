"""HTTP: the paths, their handlers and their words. No other room knows requests and answers.

`app` has the table of paths, and `routes` for programs that embed qgstream.
"""
