"""The network: what Tornado leaves open between a listening socket and a request.

`sockets` accepts and bounds connections, `http1` reads their requests. `addresses`, `origins`, `allowed_hosts` and
`cors` say which client this is, and which page. `timer` goes by the monotonic clock.
"""
