"""Brokers: the engines that own the log. Opened by URL scheme, imported only when asked for."""
