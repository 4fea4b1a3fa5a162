"""The wire: the bytes of SSE and of WebSockets, in and out, and the server's own messages. Pure."""
