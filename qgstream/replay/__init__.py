"""Replay: where a stream resumes, and how it catches up with the log."""
