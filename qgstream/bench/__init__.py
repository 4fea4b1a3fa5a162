"""What `qgstream bench` is made of: a cheap load, servers to compare with, and what is measured between them.

It needs Linux (epoll and /proc). It measures any server of event streams over HTTP, not only this one: benchmarks/
puts it in front of others.
"""
