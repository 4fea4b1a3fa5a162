"""HTTP/1.1 as in RFC 9112: reads requests from the bytes of a connection. Only `net` imports this package."""
