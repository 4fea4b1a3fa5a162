"""HTTP/1.1 as RFC 9112 defines it: requests out of the bytes of a connection. Only `net` imports this room."""
