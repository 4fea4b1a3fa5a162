"""The process: configuration, start, signals, the end, and what a host can hold."""
