"""Replay: decides where a stream resumes, and sends the stream the log until it has caught up.

`resume` decides how a stream starts. `runner` runs the replays of a hub; a `replay` sends `pages`. `log_reader` reads
events that are older than the window from the broker.
"""
