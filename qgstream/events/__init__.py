"""Events: publications, subscriptions, topics and the history. Pure: the time is an argument.

`draft` checks an event and makes a `publication` of it. A `subscription` is what a stream asked for. `topics` has the
rules for topic names and patterns. `history` is the newest part of the log, in memory. The other modules serve these.
"""
