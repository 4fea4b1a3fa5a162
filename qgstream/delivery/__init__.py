"""Delivery: from the log to the sockets. Feeds, subscribers, rounds, connections."""
