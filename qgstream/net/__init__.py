"""The network layer between a listening socket and an HTTP request, where Tornado leaves it to the application.

`sockets` accepts connections and limits their number. `http1` reads requests from connections. `addresses` and
`origins` identify the client and the page that sent a request; `allowed_hosts` and `cors` decide what the two may do.
`timer` is a periodic callback on the monotonic clock.
"""
