"""The log in a Redis stream."""
