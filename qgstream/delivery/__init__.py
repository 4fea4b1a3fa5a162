"""Delivery: from the log to the sockets.

`ingest` takes publications into the window, `dispatch` gives them to the feeds that `router` finds, and `fanout` runs
the rounds over the subscribers of a feed. A `connection` is a subscriber with a socket; `registry` has the open ones.
`slices` runs every long walk in short parts.
"""
