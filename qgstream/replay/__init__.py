"""Replay: where a stream resumes, and how it catches up with the log.

`resume` decides how a stream begins, `runner` runs the replays of a hub. `log_reader` reads what is older than the
window from the broker.
"""
