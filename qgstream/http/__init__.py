"""HTTP: the paths, their handlers and their words. No other room knows requests and answers."""
