"""The parts of `qgstream bench`: a cheap load, servers for comparison, and the measurements.

The bench needs Linux (epoll and /proc). It measures any server of event streams over HTTP, not only qgstream: the
scripts in benchmarks/ run it against other servers.
"""
