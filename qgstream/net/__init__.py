"""The network: what Tornado leaves open between a listening socket and a request."""
