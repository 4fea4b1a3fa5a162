"""Events: what is published and what is subscribed to. Pure: the time is an argument.

`draft` checks what somebody wants to publish and makes a `publication`; `subscription` is what a stream asked for, and
`topics` has the rules for names and patterns. `history` is the newest part of the log. The rest serves these.
"""
