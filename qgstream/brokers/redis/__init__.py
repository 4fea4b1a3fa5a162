"""The Redis broker: the log is a Redis stream."""
