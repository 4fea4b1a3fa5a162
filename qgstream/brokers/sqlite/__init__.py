"""The SQLite broker: the log is a file."""
