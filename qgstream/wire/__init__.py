"""The wire: the bytes of SSE and of WebSockets, in and out, and the server's own messages. Pure.

`sse` encodes, frames and parses event streams, and `websocket_frames` does the same for WebSockets. `framing` chooses
between the two. `messages` has what the server itself says on a stream.
"""
