"""Delivery: sends the events of the log to the sockets.

`ingest` takes publications into the window. `dispatch` gives them to the feeds that `router` finds. `fanout` sends the
chunks of a feed to its subscribers, in rounds. A `connection` is a subscriber with a socket; `registry` has the open
connections. `slices` runs long work in short slices.
"""
