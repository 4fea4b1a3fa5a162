"""The wire formats: bytes of SSE and of WebSockets, and the server's own messages. Pure.

`sse` encodes, frames and parses event streams, and `websocket_frames` does the same for WebSockets. `framing` selects
one of the two for a stream. `messages` builds the server's own messages, such as `connected` and `heartbeat`.
"""
