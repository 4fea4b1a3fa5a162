"""HTTP/1.1 as RFC 9112 has it: a client's requests out of the bytes of its connection."""
